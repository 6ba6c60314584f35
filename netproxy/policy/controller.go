package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/netproxy/nfttool"
	"github.com/mote-dev/mote/netproxy/reconcile"
)

// Table is the nftables table (of family inet) the policies are enforced in.
const Table = "mote-policy"

const (
	// debounce is how long changes are gathered: pods start in bursts.
	debounce = 200 * time.Millisecond
	// checkInterval bounds how long an unreported change of the table stays unrepaired.
	checkInterval = 5 * time.Minute
	// Pauses after failed passes. The longest is short because changed policies wait for it.
	firstRetry, lastRetry = time.Second, 10 * time.Second
)

// Controller keeps the table in line with the cluster's policies. Make it with [New].
type Controller struct {
	node    string
	log     *zap.Logger
	factory informers.SharedInformerFactory
	table   nfttool.Table
	removed bool // the table was deleted; only the loop uses it
	loop    *reconcile.Loop
	doubt   atomic.Bool    // the next pass checks the table, as others may have changed it
	refused retry.Failures // policies left out, as last logged; only the loop uses it

	policies   cache.SharedIndexInformer
	pods       cache.SharedIndexInformer // nil until the first policy
	namespaces cache.SharedIndexInformer // nil until the first policy
}

// New makes a controller for the pods of a node. It requests the informer of policies from the
// factory, and those of pods and namespaces when there is a policy. The factory's owner runs them:
// Start is taken for a request, as internal/informer does.
func New(node string, factory informers.SharedInformerFactory, log *zap.Logger) (*Controller, error) {
	c := &Controller{
		node:    node,
		log:     log,
		factory: factory,
		table:   nfttool.Table{Name: Table},
	}
	c.loop = reconcile.New(c.passes(c.pass))
	c.policies = factory.Networking().V1().NetworkPolicies().Informer()
	if err := c.follow(c.policies); err != nil {
		return nil, err
	}
	return c, nil
}

// Poke triggers a check of the table, because another program may have removed rules from it.
func (c *Controller) Poke() {
	c.doubt.Store(true)
	c.changed()
}

// changed triggers a pass.
func (c *Controller) changed() { c.loop.Trigger() }

// follow triggers a pass on every event of an informer that may change rules.
func (c *Controller) follow(informer cache.SharedIndexInformer) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.changed() },
		UpdateFunc: func(old, obj any) {
			if matters(old, obj) {
				c.changed()
			}
		},
		DeleteFunc: func(any) { c.changed() },
	})
	if err != nil {
		return fmt.Errorf("watch what policies depend on: %w", err)
	}
	return nil
}

// matters reports whether an update can change rules. Most updates of pods only change their
// status.
func matters(old, obj any) bool {
	a, isPod := old.(*corev1.Pod)
	b, stillPod := obj.(*corev1.Pod)
	if !isPod || !stillPod {
		return true
	}
	return a.Status.Phase != b.Status.Phase || a.Spec.NodeName != b.Spec.NodeName ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		!slices.Equal(a.Status.PodIPs, b.Status.PodIPs) || !maps.Equal(a.Labels, b.Labels)
}

// Run enforces policies until ctx ends. The table stays in place after that.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.policies.HasSynced) {
		return nil
	}
	return c.loop.Run(ctx)
}

// passes is the schedule of pass.
func (c *Controller) passes(pass func(ctx context.Context, full bool) error) reconcile.Config {
	return reconcile.Config{
		Debounce:   debounce,
		Interval:   checkInterval,
		FirstRetry: firstRetry,
		LastRetry:  lastRetry,
		Pass:       pass,
		Failed: func(err error, pause time.Duration) {
			c.log.Error("network policies are not enforced as wanted; retrying", zap.Error(err),
				zap.Duration("retry_in", pause))
		},
		Recovered: func() { c.log.Info("network policies are enforced again") },
	}
}

// pass is one pass of Run's loop. A full pass checks the table even if no change of it was
// reported.
func (c *Controller) pass(ctx context.Context, full bool) error {
	if full {
		c.doubt.Store(true)
	}
	return c.sync(ctx)
}

// sync applies the wanted state once.
func (c *Controller) sync(ctx context.Context) error {
	if len(c.policies.GetStore().List()) == 0 {
		return c.remove(ctx)
	}
	if !nfttool.Available() {
		return errors.New("enforce network policies: nft is not installed")
	}
	if err := c.watchPods(ctx); err != nil {
		return err
	}
	body, err := Render(c.state())
	c.reportRefused(err)
	if body == "" {
		return c.remove(ctx)
	}
	script := c.table.Script(body)
	if doubt := c.doubt.Swap(false); script == c.table.Applied() {
		if !doubt {
			return nil
		}
		intact, err := c.table.Intact(ctx)
		if err != nil {
			c.doubt.Store(true)
			return fmt.Errorf("check network policies: %w", err)
		}
		if intact {
			return nil
		}
	}
	c.removed = false
	if err := c.table.Apply(ctx, script); err != nil {
		c.doubt.Store(true)
		return err
	}
	c.log.Debug("wrote network policies")
	return nil
}

// reportRefused logs which policies were left out and why. A retry would not help: they stay out
// until somebody changes them.
func (c *Controller) reportRefused(err error) {
	switch {
	case err == nil:
		if c.refused.Recovered() {
			c.log.Info("all network policies are valid again")
		}
	case c.refused.News(err):
		c.log.Error("some network policies allow nothing: they are not valid", zap.Error(err))
	}
}

// remove deletes the table, also that of an earlier run. Once it has succeeded it does nothing
// until a table is written.
func (c *Controller) remove(ctx context.Context) error {
	if c.removed {
		return nil
	}
	if err := c.table.Remove(ctx); err != nil {
		return err
	}
	c.removed = true
	return nil
}

// watchPods starts watching pods and namespaces at the first policy, so that clusters without
// policies do not pay for it.
func (c *Controller) watchPods(ctx context.Context) error {
	if c.pods == nil {
		pods, namespaces := c.factory.Core().V1().Pods().Informer(), c.factory.Core().V1().Namespaces().Informer()
		if err := errors.Join(c.follow(pods), c.follow(namespaces)); err != nil {
			return err
		}
		c.pods, c.namespaces = pods, namespaces
		c.factory.Start(wait.NeverStop) // a request to the owner, who decides when they end
		c.log.Info("network policies found; watching pods")
	}
	// Rules rendered before all pods are known would cut off the missing ones.
	if !cache.WaitForCacheSync(ctx.Done(), c.pods.HasSynced, c.namespaces.HasSynced) {
		return ctx.Err()
	}
	return nil
}

// state collects everything rules depend on.
func (c *Controller) state() State {
	s := State{Namespaces: make(map[string]map[string]string)}
	for _, obj := range c.policies.GetStore().List() {
		if p, ok := obj.(*networking.NetworkPolicy); ok {
			s.Policies = append(s.Policies, p)
		}
	}
	for _, obj := range c.namespaces.GetStore().List() {
		if n, ok := obj.(*corev1.Namespace); ok {
			s.Namespaces[n.Name] = n.Labels
		}
	}
	for _, obj := range c.pods.GetStore().List() {
		if p, ok := obj.(*corev1.Pod); ok {
			if pod, ok := podFrom(p, c.node); ok {
				s.Pods = append(s.Pods, pod)
			}
		}
	}
	return s
}

// Cleanup removes the table.
func Cleanup(ctx context.Context) error {
	return (&nfttool.Table{Name: Table}).Remove(ctx)
}
