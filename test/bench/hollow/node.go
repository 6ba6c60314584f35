package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/apimachinery/lease"
	nodeutil "k8s.io/component-helpers/node/util"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/utils/clock"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/netproxy"
)

// What a kubelet does by default: its lease lasts 40 seconds and is renewed after a quarter of
// that.
const (
	leaseSeconds = 40
	renewEvery   = 10 * time.Second
)

// node is one hollow node.
type node struct {
	settings
	name   string
	number int
	dir    string
	report *report
	turns  chan struct{}
	log    *zap.Logger
}

// run joins in its turn and stays until ctx ends.
func (n *node) run(ctx context.Context) error {
	select {
	case n.turns <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	leave := func() { <-n.turns }
	g, ctx := errgroup.WithContext(ctx)
	err := n.join(ctx, g)
	leave()
	if err != nil && ctx.Err() == nil {
		g.Go(func() error { return err })
	}
	return g.Wait()
}

// join makes the node a member and starts in g what keeps it one.
func (n *node) join(ctx context.Context, g *errgroup.Group) error {
	begin := time.Now()
	connect := agent.ConnectToServer(agent.Config{
		DataDir:  n.dir,
		NodeName: n.name,
		Servers:  []string{n.server},
		Token:    n.token,
		Disable:  []string{"discovery"},
		Logger:   n.log,
	}, n.version, nil)
	connection, err := connect(ctx)
	if err != nil {
		return err
	}
	handshake := time.Since(begin)
	client, err := kubernetes.NewForConfig(connection.REST)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	shared := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(netproxy.Trim))
	g.Go(func() error { return connection.Keep(ctx, shared) })

	factories := n.watches(client, shared)
	for _, f := range factories {
		f.Start(ctx.Done())
		g.Go(func() error {
			<-ctx.Done()
			f.Shutdown()
			return nil
		})
	}
	registered, err := client.CoreV1().Nodes().Create(ctx, n.object(), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	heartbeat := lease.NewController(clock.RealClock{}, client, n.name, leaseSeconds, func() { n.report.missed.Add(1) },
		renewEvery,
		n.name, corev1.NamespaceNodeLease, kubeletutil.SetNodeOwnerFunc(ctx, client, n.name))
	g.Go(func() error {
		heartbeat.Run(ctx)
		return nil
	})
	if err := n.serving(ctx, client); err != nil {
		return err
	}
	for _, f := range factories {
		for kind, synced := range f.WaitForCacheSync(ctx.Done()) {
			if !synced {
				return fmt.Errorf("list %v: %w", kind, context.Cause(ctx))
			}
		}
	}
	// It says that it is ready once it has looked around: the change of status every node begins
	// with.
	status := &status{node: n, client: client, last: registered}
	if err := status.say(ctx, true); err != nil {
		return err
	}
	n.report.joined(handshake, time.Since(begin))
	g.Go(func() error { return status.keep(ctx) })
	return nil
}

// watches returns factories with the informers that a node's service proxy, pod network, DNS and
// kubelet have. What the first three need is in shared.
func (n *node) watches(client kubernetes.Interface,
	shared informers.SharedInformerFactory) []informers.SharedInformerFactory {
	shared.Core().V1().Services().Informer()
	shared.Core().V1().Nodes().Informer()
	shared.Core().V1().Namespaces().Informer()
	shared.Discovery().V1().EndpointSlices().Informer()
	shared.Networking().V1().ServiceCIDRs().Informer()
	shared.Networking().V1().NetworkPolicies().Informer()

	one := func(namespace, field, value string) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
			informers.WithTweakListOptions(
				func(o *metav1.ListOptions) { o.FieldSelector = fields.OneTermEqualSelector(field, value).String() }))
	}
	names := one(dns.SettingsNamespace, metav1.ObjectNameField, dns.SettingsName)
	names.Core().V1().ConfigMaps().Informer()
	own := one(metav1.NamespaceAll, metav1.ObjectNameField, n.name)
	own.Core().V1().Nodes().Informer()
	pods := one(metav1.NamespaceAll, "spec.nodeName", n.name)
	pods.Core().V1().Pods().Informer()
	kubelet := informers.NewSharedInformerFactory(client, 0)
	kubelet.Core().V1().Services().Informer()
	kubelet.Node().V1().RuntimeClasses().Informer()
	kubelet.Storage().V1().CSIDrivers().Informer()
	return []informers.SharedInformerFactory{shared, names, own, pods, kubelet}
}

// address is the node's, different for each and nowhere else.
func (n *node) address() net.IP { return net.IPv4(172, 31, byte(n.number/250), byte(n.number%250+1)) }

// status is a node's, as the server knows it.
type status struct {
	node   *node
	client kubernetes.Interface
	last   *corev1.Node
}

// say sends the status if it differs from the last, as the times in it always do.
func (s *status) say(ctx context.Context, ready bool) error {
	next := s.last.DeepCopy()
	next.Status.Conditions = conditions(ready, s.last.Status.Conditions)
	updated, _, err := nodeutil.PatchNodeStatus(s.client.CoreV1(), types.NodeName(s.node.name), s.last, next)
	if err != nil {
		return fmt.Errorf("say status: %w", err)
	}
	s.last = updated
	return nil
}

// keep says the status from time to time, not all nodes at the same.
func (s *status) keep(ctx context.Context) error {
	wait := rand.N(s.node.statusEvery)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		// The next round says it again.
		if err := s.say(ctx, true); err != nil && ctx.Err() == nil {
			s.node.log.Warn("status not said", zap.Error(err))
		}
		wait = s.node.statusEvery
	}
}
