package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/mote-dev/mote/test/bench/measure"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// Ports and ranges of the upstream parts, none of them mote's.
const (
	etcdPort, etcdPeerPort                    = "12379", "12380"
	apiPort                                   = "16443"
	controllersPort, schedulerPort            = "20257", "20259"
	kubeletPort, kubeletHealthPort            = "20250", "20248"
	proxyHealthPort, proxyMetricsPort         = "20256", "20249"
	peerPods, peerNodePods                    = "10.244.0.0/16", "10.244.0.0/24"
	peerServices, peerFirstService, peerNames = "10.97.0.0/16", "10.97.0.1", "10.97.0.10"
	pauseImage                                = "bench.local/pause:1"
)

// upstream are the programs that do together what mote does, but for DNS, set up as kubeadm does
// where it matters to the figures.
type upstream struct {
	cluster *measure.Cluster
	ctr     measure.Tool
	bin     string // the programs
	tools   string // runc, its shim, CNI plugins, ctr: those mote has unpacked
	dir     string
	ca      *authority
}

// newUpstream returns the upstream programs, not started, with the tools that mote has unpacked in
// its data folder.
func newUpstream(s settings, moteData string) (subject, error) {
	dir := filepath.Join(sandbox.Dir(), "up")
	u := &upstream{bin: s.upstream, tools: filepath.Join(moteData, "bin", "current"), dir: dir}
	var err error
	if u.ca, err = newAuthority(u.path("pki"), "https://127.0.0.1:"+apiPort); err != nil {
		return subject{}, err
	}
	for _, id := range []identity{
		{name: "apiserver", user: "kube-apiserver", serverOf: []string{"127.0.0.1", sandbox.HostIP, peerFirstService,
			"localhost", "kubernetes", "kubernetes.default.svc"}},
		{name: "apiserver-kubelet-client", user: "kube-apiserver-kubelet-client", group: "system:masters"},
		{name: "front-proxy-client", user: "front-proxy-client"},
		{
			name:     "kubelet-serving",
			user:     "system:node:" + nodeName,
			group:    "system:nodes",
			serverOf: []string{sandbox.HostIP, nodeName},
		},
		{name: "admin", user: "admin", group: "system:masters"},
		{name: "controllers", user: "system:kube-controller-manager"},
		{name: "scheduler", user: "system:kube-scheduler"},
		{name: "kubelet", user: "system:node:" + nodeName, group: "system:nodes"},
		{name: "proxy", user: "system:kube-proxy"},
		{name: "service-accounts", user: "service-accounts", serverOf: []string{"nobody"}},
	} {
		if err := u.ca.issue(id); err != nil {
			return subject{}, err
		}
	}
	if err := u.writeConfigs(); err != nil {
		return subject{}, err
	}
	kubeconfig := u.ca.file("admin.kubeconfig")
	u.cluster = &measure.Cluster{
		Name:       "upstream",
		Kubeconfig: kubeconfig,
		Logs:       s.Logs + "/upstream-",
		Kubectl:    measure.Tool{Path: s.Mote, Name: s.Mote, Args: []string{"kubectl", "--kubeconfig", kubeconfig}},
		Env:        []string{"PATH=" + u.tools + ":" + os.Getenv("PATH")},
	}
	u.ctr = measure.Tool{Path: filepath.Join(u.tools, "mote-helper"), Name: "ctr",
		Args: []string{"--address", u.socket(), "--namespace", "k8s.io"}}
	return subject{
		Cluster:     u.cluster,
		executables: u.executables(),
		start:       u.start,
		load:        u.load,
	}, nil
}

func (u *upstream) path(name string) string { return filepath.Join(u.dir, name) }
func (u *upstream) socket() string          { return u.path("containerd.sock") }

var errNoPause = errors.New("mote's tools have no pause image")

// load imports an archive, and the pause image that mote brings, by the name containerd was told.
func (u *upstream) load(ctx context.Context, archive string) error {
	for _, a := range []string{filepath.Join(u.tools, "pause.tar"), archive} {
		if _, err := u.ctr.Run(ctx, nil, "images", "import", a); err != nil {
			return err
		}
	}
	names, err := u.ctr.Run(ctx, nil, "images", "list", "--quiet")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(names) {
		if strings.Contains(name, "/pause:") {
			_, err := u.ctr.Run(ctx, nil, "images", "tag", name, pauseImage)
			return err
		}
	}
	return errNoPause
}

// executables are the programs the parts are.
func (u *upstream) executables() []string {
	var list []string
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd",
		"kubelet", "kube-proxy"} {
		list = append(list, filepath.Join(u.bin, name))
	}
	return list
}

// start starts each part when what it needs is there, as nothing is gained by starting it earlier:
// it would try again at its leisure.
func (u *upstream) start(ctx context.Context) error {
	c := u.cluster
	run := func(name string, args ...string) error {
		return c.Start(ctx, name, filepath.Join(u.bin, name), args...)
	}
	if err := run("etcd", u.etcdArgs()...); err != nil {
		return err
	}
	if err := run("containerd", "--config", u.path("containerd.toml")); err != nil {
		return err
	}
	if _, err := c.Until(ctx, "etcd", listening("tcp", "127.0.0.1:"+etcdPort)); err != nil {
		return err
	}
	if err := run("kube-apiserver", u.apiserverArgs()...); err != nil {
		return err
	}
	if _, err := c.UntilAPI(ctx); err != nil {
		return err
	}
	if _, err := c.Until(ctx, "containerd", listening("unix", u.socket())); err != nil {
		return err
	}
	if err := run("kube-controller-manager", u.controllersArgs()...); err != nil {
		return err
	}
	if err := run("kube-scheduler", u.schedulerArgs()...); err != nil {
		return err
	}
	if err := run("kubelet", u.kubeletArgs()...); err != nil {
		return err
	}
	return run("kube-proxy", "--config", u.path("proxy.yaml"))
}

func listening(network, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return fmt.Errorf("reach %s: %w", address, err)
		}
		return conn.Close()
	}
}
