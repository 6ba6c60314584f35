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
	// debounce gathers changes: pods come in bursts.
	debounce = 200 * time.Millisecond
	// checkInterval bounds how long a change of the table that was not reported can last.
	checkInterval = 5 * time.Minute
	// Pauses between attempts to apply what failed. The last is short because changed policies wait for it.
	firstRetry, lastRetry = time.Second, 10 * time.Second
)

// Controller keeps the table as the cluster's policies want it. Make it with [New].
type Controller struct {
	node    string
	log     *zap.Logger
	factory informers.SharedInformerFactory
	table   nfttool.Table
	removed bool // there is no table; only the loop uses it
	loop    *reconcile.Loop
	doubt   atomic.Bool    // the table may have been changed by others and is to be looked at
	refused retry.Failures // policies left out, as last reported; only the loop uses it

	policies   cache.SharedIndexInformer
	pods       cache.SharedIndexInformer // nil until the first policy
	namespaces cache.SharedIndexInformer // nil until the first policy
}

// New makes a controller for the pods of a node. It requests the informer of policies from the factory, and those of pods and
// namespaces when there is a policy. The factory's owner runs them: Start is taken for a request, as internal/informer does.
func New(node string, factory informers.SharedInformerFactory, log *zap.Logger) (*Controller, error) {
	c := &Controller{node: node, log: log, factory: factory, table: nfttool.Table{Name: Table}}
	c.loop = reconcile.New(c.passes(c.pass))
	c.policies = factory.Networking().V1().NetworkPolicies().Informer()
	if err := c.follow(c.policies); err != nil {
		return nil, err
	}
	return c, nil
}

// Poke asks for a look at the table, because another program may have removed rules from it.
func (c *Controller) Poke() {
	c.doubt.Store(true)
	c.changed()
}

// changed asks for the rules to be rendered anew.
func (c *Controller) changed() { c.loop.Trigger() }

// follow asks for new rules on every change an informer reports that can matter.
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

// matters tells whether an update can change rules. Pods report their state all the time.
func matters(old, obj any) bool {
	a, isPod := old.(*corev1.Pod)
	b, stillPod := obj.(*corev1.Pod)
	if !isPod || !stillPod {
		return true
	}
	return a.Status.Phase != b.Status.Phase || a.Spec.NodeName != b.Spec.NodeName || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		!slices.Equal(a.Status.PodIPs, b.Status.PodIPs) || !maps.Equal(a.Labels, b.Labels)
}

// Run enforces until ctx ends. The table stays then.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.policies.HasSynced) {
		return nil
	}
	return c.loop.Run(ctx)
}

// passes says when pass runs.
func (c *Controller) passes(pass func(ctx context.Context, full bool) error) reconcile.Config {
	return reconcile.Config{
		Debounce:   debounce,
		Interval:   checkInterval,
		FirstRetry: firstRetry,
		LastRetry:  lastRetry,
		Pass:       pass,
		Failed: func(err error, pause time.Duration) {
			c.log.Error("network policies are not enforced as wanted; retrying", zap.Error(err), zap.Duration("retry_in", pause))
		},
		Recovered: func() { c.log.Info("network policies are enforced again") },
	}
}

// pass is one pass of Run's loop. A full one looks at the table although no change of it was reported.
func (c *Controller) pass(ctx context.Context, full bool) error {
	if full {
		c.doubt.Store(true)
	}
	return c.sync(ctx)
}

// sync makes the table be as wanted once.
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

// reportRefused logs which policies were left out and why. Trying again would not help: they stay out until somebody changes
// them.
func (c *Controller) reportRefused(err error) {
	switch {
	case err == nil:
		if c.refused.Recovered() {
			c.log.Info("no network policy is left out any more")
		}
	case c.refused.News(err):
		c.log.Error("some network policies allow nothing: they are not valid", zap.Error(err))
	}
}

// remove takes the table away, that of an earlier run included, and looks for it only once.
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

// watchPods starts to watch pods and namespaces at the first policy: clusters without any need not pay for it.
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
	// Rules made without all pods would cut off those missing.
	if !cache.WaitForCacheSync(ctx.Done(), c.pods.HasSynced, c.namespaces.HasSynced) {
		return ctx.Err()
	}
	return nil
}

// state gathers what rules depend on.
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
