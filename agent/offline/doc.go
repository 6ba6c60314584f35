// Package offline owns what a node knows of its cluster while no server answers:
// a round tripper below all of the node's clients that keeps what the API server
// last said on disk and says it again when nobody else does.
//
// A copy of answers was chosen over a checkpoint of pods for the kubelet,
// another for the service proxy and so on: every client goes through here, so
// all of them come back from one consistent state, with nothing in them that
// knows of being cut off, and upstream's kubelet unchanged. Lists keep the
// resource version they were made at. When a server is back, watches go on from
// there, or lists are read anew if that is too long ago: the same as after any
// broken watch, so nothing is lost and nothing comes twice.
//
// Kept are lists of what a node needs to run its pods, single objects that
// kubelets read one by one, and tokens of service accounts: an old token is
// refused by a server, but keeps a pod's volume whole. An event in a watch makes
// the list be read again: at once where it is about the node itself or its pods
// that came or went, else a moment later, and at a pace that disks stand. Events
// of nodes alone are decoded, to tell a change from a sign of life, which is never
// written. What waits is kept at an orderly end; after a power cut, changes of
// other nodes and of services that never end may be missing for half a minute.
// While the process runs, the clients know them. What writes, and what is not
// named here, fails while no server answers, which its askers retry.
//
// The folder holds secrets of the node's pods, which the node may read anyway;
// it is for root alone, and what nobody asks for any more is removed.
//
// It must not import the kubelet, the server or how connections are made.
package offline
