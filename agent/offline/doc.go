// Package offline owns what a node knows of its cluster while no server answers: a round tripper
// below all of the node's clients that stores the API server's responses on disk, and serves them
// while the server is away.
//
// Caching responses was chosen over a checkpoint of pods for the kubelet, another for the service
// proxy and so on. Every client goes through here, so all of them restart from one consistent
// state, none needs to know about being offline, and upstream's kubelet stays unchanged. Lists keep
// the resource version they were read at. Once a server is back, watches resume from there, or
// lists are read anew if that version is too old: the same as after any broken watch, so no event
// is lost or repeated.
//
// Cached are lists of what a node needs to run its pods, single objects that kubelets read one by
// one, and tokens of service accounts: a server refuses an expired token, but it keeps a pod's
// volume complete. An event in a watch makes the list be read again: at once if it is about the
// node itself or adds or deletes one of its pods, otherwise a moment later, at a pace that flash
// storage survives. Only events of nodes are decoded, to tell changes from heartbeats, which are
// never written. Pending reads are made at an orderly shutdown. After a power cut, changes of other
// nodes and of services that change without pause may be missing for the last half minute; while
// the process runs, the clients have them. All other requests, including every write, fail while
// offline; clients retry them.
//
// The folder holds secrets of the node's pods, which the node may read anyway. Only root can read
// it, and what no client uses any more is removed.
//
// It must not import anything else of this repository but internal/atomicfile.
package offline
