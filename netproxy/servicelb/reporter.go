package servicelb

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/hostports"
	"github.com/mote-dev/mote/internal/retry"
)

const (
	// scanInterval is how often the host's ports are looked at while there are load balancers.
	scanInterval = 10 * time.Second
	// pokeInterval is the least time between two looks, however often services change.
	pokeInterval = time.Second
	// reportInterval is how often a report is repeated that did not change.
	reportInterval = 5 * time.Minute
	// Pauses before the report is tried again: the node may not be registered yet.
	firstRetry, lastRetry = 200 * time.Millisecond, 30 * time.Second
)

// Config is what a reporter needs.
type Config struct {
	// Client may patch this node's Node object.
	Client   kubernetes.Interface
	NodeName string
	// Wanted reports whether the cluster has a service that needs a load balancer.
	Wanted func() bool
	// Changed is called when [Reporter.Trim] may return something else than before.
	Changed func()
	Logger  *zap.Logger
}

// Reporter follows the host's listeners.
type Reporter struct {
	config Config
	poked  chan struct{}
	// renewed is set when the Node is another one than reported on.
	renewed atomic.Bool

	mu        sync.Mutex // guards what follows
	text      string     // listeners as they are reported
	listeners []hostports.Listener
	own       []netip.Addr // the host's addresses
}

// New returns a reporter. Run starts it.
func New(c Config) *Reporter { return &Reporter{config: c, poked: make(chan struct{}, 1)} }

// Poke makes Run look at the host's ports soon: a service that needs a load balancer came or
// changed.
func (r *Reporter) Poke() {
	select {
	case r.poked <- struct{}{}:
	default:
	}
}

// Renew makes Run report again: the Node is new, and has no report.
func (r *Reporter) Renew() {
	r.renewed.Store(true)
	r.Poke()
}

// Run scans and reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	scanner, err := newScanner()
	if err != nil {
		return err
	}
	var failures retry.Failures
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry}
	var reported report
	var looked time.Time
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.poked:
			if retry.Sleep(ctx, time.Until(looked.Add(pokeInterval))) != nil {
				return nil
			}
		case <-again.C:
		}
		looked = time.Now()
		if r.renewed.Swap(false) {
			reported = report{}
		}
		text, err := r.update(scanner)
		if err == nil && !reported.holds(text) {
			if err = r.publish(ctx, text); err == nil {
				reported = report{text, time.Now()}
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// Each node begins unregistered.
			if !apierrors.IsNotFound(err) && failures.News(err) {
				r.config.Logger.Warn("the host's ports are not reported, so this node serves no new load balancer; "+
					"trying again", zap.Error(err))
			}
			again.Reset(backoff.Next())
		case r.config.Wanted():
			failures.Recovered()
			backoff.Reset()
			again.Reset(scanInterval)
		default:
			failures.Recovered()
			backoff.Reset()
			again.Stop()
		}
	}
}

// report is what the Node was told last.
type report struct {
	text string
	at   time.Time
}

// holds reports whether the Node needs no other report. It is repeated now and then, as somebody
// may have deleted the annotation, or the Node with it.
func (r report) holds(text string) bool { return r.text == text && time.Since(r.at) < reportInterval }

// update scans, and returns the report.
func (r *Reporter) update(s *scanner) (string, error) {
	listeners, err := s.scan()
	if err != nil {
		return "", err
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list the host's addresses: %w", err)
	}
	own := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr())
		}
	}
	text, err := hostports.Format(listeners)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	changed := r.text != text || !slices.Equal(r.own, own)
	r.text, r.listeners, r.own = text, listeners, own
	r.mu.Unlock()
	if changed {
		r.config.Changed()
	}
	return text, nil
}

func (r *Reporter) publish(ctx context.Context, text string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{hostports.Annotation: text}}})
	if err != nil {
		return fmt.Errorf("write the host's ports: %w", err)
	}
	_, err = r.config.Client.CoreV1().Nodes().Patch(ctx, r.config.NodeName, types.MergePatchType, patch,
		metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("report the host's ports on node %s: %w", r.config.NodeName, err)
	}
	return nil
}

// Trim returns the service without those of its load balancer's addresses that are this host's own
// and at which a program of the host listens on one of the service's ports. The proxy would
// otherwise send that program's clients to the service: the host's own SSH, say. The service passed
// in stays as it is.
func (r *Reporter) Trim(s *corev1.Service) *corev1.Service {
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := func(i corev1.LoadBalancerIngress) bool {
		ip, err := netip.ParseAddr(i.IP)
		if err != nil || !slices.Contains(r.own, ip) {
			return false
		}
		return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
			_, found := hostports.Find(r.listeners, ip, uint16(p.Port), p.Protocol)
			return found
		})
	}
	if !slices.ContainsFunc(s.Status.LoadBalancer.Ingress, taken) {
		return s
	}
	trimmed := s.DeepCopy()
	trimmed.Status.LoadBalancer.Ingress = slices.DeleteFunc(trimmed.Status.LoadBalancer.Ingress, taken)
	return trimmed
}
