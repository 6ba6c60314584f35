// Package store owns the cluster's data: etcd's v3 API on one SQLite file.
//
// Open returns a Store. Its Run does the background work, and its Close ends that and closes the
// file. Client and KubernetesClient return etcd clients that call the store in the process;
// RegisterGRPC and Serve offer it to any etcd client over a connection. A write is on disk before
// it is acknowledged (DurabilityFull), and a revision that was visible once never means anything
// else, not even after a power cut.
//
// Writes wait in the writer's queue; those that arrive during a commit share the next one. The
// journal decides how a transaction becomes durable: synced, unsynced or deferred. Reads run on
// snapshots of their own and block nobody. Watches are fed from memory in revision order by the
// hub, and a watch that cannot keep up reads the file instead. The checkpointer copies the
// write-ahead log back, and the compactor deletes old versions in small steps.
//
// For the command line there are Snapshot (also of a store that another process has open),
// ListSnapshots, CheckFile and Restore, which work on files, and Serve, which runs a store for
// other processes.
//
// Only recognised damage is ErrDamaged, which asks for the newest snapshot; ErrNewer asks for a
// newer mote, ErrInUse means another process, ErrNoSpace goes away once there is room. All other
// errors keep their cause.
//
// The package knows bytes and revisions, no Kubernetes types. It must not import anything else of
// this repository but internal/retry.
package store
