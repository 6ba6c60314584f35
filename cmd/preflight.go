package cmd

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/runtime/recovery"
	"github.com/mote-dev/mote/server"
)

// Where parts of a node listen unless a kubelet-arg or kube-proxy-arg says otherwise.
const (
	kubeletPort  = "10250"
	proxyHealthz = "0.0.0.0:10256"
	proxyMetrics = "127.0.0.1:10249"
)

var errNotRoot = errors.New("permission denied: not running as root: use sudo")

// preflight finds out whether a server can run here, and takes the data folder for this process.
// When it refuses, the host is as it was.
func preflight(h hostcheck.Host, s server.Config, a *agent.Config) (*datadir.Dir, error) {
	return preflightOf(h, s.DataDir, s.Logger, hostOptions(s, a), func() error { return checkStored(s) })
}

// preflightOf is preflight for any role; stored checks what the data folder holds already.
func preflightOf(h hostcheck.Host, dataDir string, log *zap.Logger, o hostcheck.Options,
	stored func() error) (*datadir.Dir, error) {
	// Without these two, all further checks would fail for the wrong reason.
	if h.UID() != 0 {
		return nil, errNotRoot
	}
	if err := h.TryDir(dataDir); err != nil && !(o.Existing && hostcheck.IsFull(err)) {
		return nil, fmt.Errorf("data-dir %s cannot be written (%w): %s", dataDir, err, hostcheck.DirRemedy(err))
	}
	// Before the ports: a mote that runs already has them too, and is the cause.
	dir, err := datadir.Open(dataDir, dataVersions())
	if err != nil {
		return nil, err
	}
	if err := stored(); err != nil {
		return nil, errors.Join(err, dir.Abandon())
	}
	if o.Node {
		if err := checkNoOtherNode(dataDir); err != nil {
			return nil, errors.Join(err, dir.Abandon())
		}
	}
	results := hostcheck.Run(h, o)
	if err := hostcheck.Faults(results); err != nil {
		return nil, errors.Join(err, dir.Abandon())
	}
	for _, r := range results {
		if r.Urgent {
			log.Warn("host: "+r.Name+": "+r.Found, zap.String("remedy", r.Remedy))
		} else if r.Level == hostcheck.Warn {
			// Debug: nobody reads what is said at every start; `mote check` tells all.
			log.Debug("host: "+r.Name+": "+r.Found, zap.String("remedy", r.Remedy))
		}
	}
	return dir, nil
}

// checkNoOtherNode refuses cgroups for pods that another kubelet's pods are in, such as k3s' or
// those of a mote in a container that sees this machine's: each kubelet would kill the other's.
func checkNoOtherNode(dataDir string) error {
	root := agent.CgroupRoot(dataDir)
	shim, socket, err := recovery.OtherNode(datadir.At(dataDir).Agent().Dir(), root)
	if err != nil || shim == 0 {
		return err
	}
	return fmt.Errorf("cgroup %s has pods of another node (shim %d of the containerd at %s), and two kubelets "+
		"would kill each other's pods: end that node's pods, or give this one a --data-dir of its own, other than %s",
		filepath.Join(root, "kubepods"), shim, socket, dataDir)
}

// hostOptions say what a server with these settings wants of the host.
func hostOptions(s server.Config, a *agent.Config) hostcheck.Options {
	bind := ""
	if s.BindAddress != nil {
		bind = s.BindAddress.String()
	}
	o := hostcheck.Options{
		DataDir:  s.DataDir,
		Existing: datadir.At(s.DataDir).HasRun(),
		Node:     a != nil,
		IPv6:     s.Cluster.HasIPv6(),
		Cluster:  s.Cluster,
		Own:      agent.OwnNetworks(s.DataDir),
		Ports: []hostcheck.Port{{
			Address: net.JoinHostPort(bind, strconv.Itoa(s.HTTPSListenPort)),
			Purpose: "the API server", Setting: "--https-listen-port",
		}},
	}
	if a != nil {
		o.NodeIPs = a.NodeIPs
		o.ResolvConf = a.ResolvConf
		o.Ports = append(o.Ports, hostcheck.Port{
			Address: net.JoinHostPort(upstreamflag.Value(a.KubeletArgs, "address", ""),
				upstreamflag.Value(a.KubeletArgs, "port", kubeletPort)),
			Purpose: "the kubelet", Setting: "--kubelet-arg=port=N",
		})
	}
	return o
}
