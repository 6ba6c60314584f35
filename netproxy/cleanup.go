package netproxy

import (
	"context"
	"errors"

	"go.uber.org/zap"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	"k8s.io/kubernetes/pkg/proxy/nftables"

	"github.com/go-logr/zapr"
	"github.com/mote-dev/mote/netproxy/podnet"
	"github.com/mote-dev/mote/netproxy/policy"
)

// CleanupConfig configures [Cleanup]. Zero values mean the defaults of [Config].
type CleanupConfig struct {
	// Bridge is the pods' bridge; empty means mote0.
	Bridge string
	// CNIConfDir and StateDir are those of the [Config]; empty leaves files alone.
	CNIConfDir, StateDir string
	// Logger logs what could not be removed; nil means no logs.
	Logger *zap.Logger
}

// Cleanup removes everything a [Proxy] created: service rules of both modes, the node's own rules,
// the bridge and the pods' interfaces on it, the overlay, address leases and the network list. It
// never touches rules of others and may be repeated. The Proxy must not be running, or it would
// restore its rules.
func Cleanup(ctx context.Context, c CleanupConfig) error {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	ctx = klog.NewContext(ctx, zapr.NewLogger(upstreamLogger(c.Logger)))
	var errs []error
	if nftables.CleanupLeftovers(ctx) {
		errs = append(errs, errors.New("remove service rules of nftables: see the log"))
	}
	if podnet.IPTablesInUse(ctx) && iptables.CleanupLeftovers(ctx) {
		errs = append(errs, errors.New("remove service rules of iptables: see the log"))
	}
	errs = append(errs, policy.Cleanup(ctx), podnet.Cleanup(ctx, podnet.Config{
		Bridge:   c.Bridge,
		ConfDir:  c.CNIConfDir,
		StateDir: c.StateDir,
		Logger:   c.Logger,
	}))
	return errors.Join(errs...)
}
