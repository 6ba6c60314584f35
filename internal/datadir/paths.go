package datadir

import (
	"fmt"
	"os"
	"path/filepath"
)

// Paths is the map of a data folder: where each part keeps its files. No other package spells one
// of these names, so that what one part writes is what another looks for, backs up or removes.
type Paths struct {
	// Root is the data folder itself.
	Root string
}

// At returns the map of the data folder root.
func At(root string) Paths { return Paths{Root: root} }

func (p Paths) lockFile() string    { return filepath.Join(p.Root, "mote.lock") }
func (p Paths) versionFile() string { return filepath.Join(p.Root, "version") }
func (p Paths) outsideFile() string { return filepath.Join(p.Root, "outside") }

// Records are the files at the top of the folder, in the order to remove them in: the lock goes
// last.
func (p Paths) Records() []string {
	return []string{p.StatusSocket(), p.outsideFile(), p.versionFile(), p.lockFile()}
}

// StatusSocket is where a running mote answers `mote status`.
func (p Paths) StatusSocket() string { return filepath.Join(p.Root, "status.sock") }

// HasRun reports whether a mote has run on the folder before: it left its version, a store or a
// node's identity. What cannot be looked at is for whoever opens it.
func (p Paths) HasRun() bool {
	for _, mark := range []string{p.versionFile(), p.StoreFile(), p.Agent().Identity()} {
		if _, err := os.Stat(mark); err == nil {
			return true
		}
	}
	return false
}

// Server is the folder of the control plane.
func (p Paths) Server() string { return filepath.Join(p.Root, "server") }

// TLS holds the cluster's authorities and the server's keys; names in it are package pki's.
func (p Paths) TLS() string { return filepath.Join(p.Root, "server", "tls") }

// Database is the folder of the built-in store.
func (p Paths) Database() string { return filepath.Join(p.Root, "server", "db") }

// StoreFile is the built-in store.
func (p Paths) StoreFile() string { return filepath.Join(p.Root, "server", "db", "state.db") }

// Snapshots holds snapshots of the built-in store.
func (p Paths) Snapshots() string { return filepath.Join(p.Root, "server", "db", "snapshots") }

// TokenFile is the token of the server's join command.
func (p Paths) TokenFile() string { return filepath.Join(p.Root, "server", "token") }

// ServerID tells apart the servers of one etcd.
func (p Paths) ServerID() string { return filepath.Join(p.Root, "server", "id") }

// Bin holds the bundled tools, a folder a version.
func (p Paths) Bin() string { return filepath.Join(p.Root, "bin") }

// CurrentBin is the link to the version in use.
func (p Paths) CurrentBin() string { return filepath.Join(p.Root, "bin", CurrentLink) }

// CurrentLink is the name, among the versions of the bundled tools, of the link to the one in use.
const CurrentLink = "current"

// Agent is the map of the node's folder.
func (p Paths) Agent() Agent { return Agent(filepath.Join(p.Root, "agent")) }

// Agent is a node's folder, "agent" in a data folder, and the map of what lies in it.
type Agent string

// Dir is the folder itself.
func (a Agent) Dir() string { return string(a) }

// Paths is the map of the data folder that a is in.
func (a Agent) Paths() Paths { return At(filepath.Dir(string(a))) }

// Identity holds the node's keys and certificates, and which cluster it joined.
func (a Agent) Identity() string { return filepath.Join(string(a), "pki") }

// Offline holds what the node remembers of the API.
func (a Agent) Offline() string { return filepath.Join(string(a), "offline") }

// DNSCheckpoint is what the node's DNS remembers of services.
func (a Agent) DNSCheckpoint() string { return filepath.Join(string(a), "dns.checkpoint") }

// ResolvConf is the file that pods with the host's DNS get.
func (a Agent) ResolvConf() string { return filepath.Join(string(a), "resolv.conf") }

// Kubelet is the kubelet's root folder.
func (a Agent) Kubelet() string { return filepath.Join(string(a), "kubelet") }

// Pods holds a folder for each pod, named by its UID: the kubelet makes them.
func (a Agent) Pods() string { return filepath.Join(string(a), "kubelet", "pods") }

// StaticPods holds manifests of pods that the kubelet runs without the API.
func (a Agent) StaticPods() string { return filepath.Join(string(a), "pod-manifests") }

// PodLogs holds containers' logs, for a node that does not use the machine's folder.
func (a Agent) PodLogs() string { return filepath.Join(string(a), "pod-logs") }

// CNI is the state of the pod network.
func (a Agent) CNI() string { return filepath.Join(string(a), "cni") }

// CNIConf holds the pod network's configuration for containerd.
func (a Agent) CNIConf() string { return filepath.Join(string(a), "cni", "conf") }

// Containerd is containerd's persistent state.
func (a Agent) Containerd() string { return filepath.Join(string(a), "containerd") }

// ContainerdSocket is containerd's socket, unless the path is too long for one.
func (a Agent) ContainerdSocket() string {
	return filepath.Join(string(a), "containerd", "containerd.sock")
}

// Images holds image archives to load.
func (a Agent) Images() string { return filepath.Join(string(a), "images") }

// Imported holds those of the archives that `mote image import` kept.
func (a Agent) Imported() string { return filepath.Join(string(a), "images", "imported") }

// Registries holds containerd's hosts.toml files.
func (a Agent) Registries() string { return filepath.Join(string(a), "registries") }

// Runtime holds the container runtime's own marks: clean stop, boot, loaded archives.
func (a Agent) Runtime() string { return filepath.Join(string(a), "runtime") }

// UserCache is where mote keeps files for a user who may not write to a data folder.
func UserCache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	return filepath.Join(dir, "mote"), nil
}

// UserBin holds the bundled tools in the user's cache.
func UserBin() (string, error) {
	cache, err := UserCache()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "bin"), nil
}
