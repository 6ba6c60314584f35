// Package store owns the cluster's data: etcd's v3 API on one SQLite file.
//
// Open gives a Store; its Run does the background work and its Close ends it. Client and KubernetesClient give etcd
// clients that call the store in the process; RegisterGRPC and Serve offer it to any etcd client over a connection.
// A write is on disk before anyone is told of it (DurabilityFull), and a revision that was shown once never means
// anything else, whatever happens to the power.
//
// One goroutine writes; writes that wait while a commit is on its way to the disk share the next one. Reads run on
// snapshots of their own and wait for nobody. Watches are fed from memory in the order of revisions, and one that
// cannot keep up reads the file instead.
//
// For the command line there are Snapshot (also of a store that another process has open), ListSnapshots, CheckFile
// and Restore, which work on files, and Serve, which runs a store for other processes.
//
// Errors carry what to do about them: ErrDamaged asks for the newest snapshot, ErrNewer for a newer mote, ErrInUse
// names another process, ErrNoSpace goes away by itself once there is room.
//
// The package knows bytes and revisions: it must not import anything of Kubernetes, nor server, agent, runtime or netproxy.
package store
