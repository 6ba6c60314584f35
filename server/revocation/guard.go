package revocation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	informersv1 "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// DefaultWait is how long a request waits for the list after the start.
const DefaultWait = 30 * time.Second

// ErrNotRead is returned until the list has been read: nobody knows yet what is revoked.
var ErrNotRead = errors.New("the list of revoked certificates has not been read yet")

// Config is what a Guard needs.
type Config struct {
	// Client reaches the API server without a certificate.
	Client kubernetes.Interface
	// Wait is how long requests wait for the list after the start. Zero means DefaultWait.
	Wait   time.Duration
	Logger *zap.Logger
}

// Guard follows the list and refuses the certificates on it.
type Guard struct {
	config Config
	list   atomic.Pointer[list]
	loaded chan struct{}

	// mu guards what follows, and that lists replace each other in order.
	mu        sync.Mutex
	callbacks []func()
	requests  map[*request]struct{}
	// logged holds when a refusal was last logged, by serial number; at most maxLogged.
	logged map[string]time.Time
}

// New returns a guard that lets no certificate pass until Run has read the list.
func New(c Config) (*Guard, error) {
	if c.Client == nil || c.Logger == nil {
		return nil, fmt.Errorf("revocation: client and logger are needed")
	}
	if c.Wait == 0 {
		c.Wait = DefaultWait
	}
	g := &Guard{
		config:   c,
		loaded:   make(chan struct{}),
		requests: map[*request]struct{}{},
		logged:   map[string]time.Time{},
	}
	g.list.Store(&list{})
	return g, nil
}

// Run reads the list and follows it until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	informer := informersv1.NewFilteredConfigMapInformer(g.config.Client, Namespace, 0, cache.Indexers{},
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, Name).String()
		})
	registration, err := informer.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(object any) bool {
			if d, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = d.Obj
			}
			cm, ok := object.(*corev1.ConfigMap)
			return ok && cm.Name == Name
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { g.apply(object.(*corev1.ConfigMap)) },
			UpdateFunc: func(_, object any) { g.apply(object.(*corev1.ConfigMap)) },
			DeleteFunc: func(object any) { g.deleted() },
		},
	})
	if err != nil {
		return fmt.Errorf("follow list of revoked certificates: %w", err)
	}
	var following sync.WaitGroup
	following.Go(func() { informer.RunWithContext(ctx) })
	select {
	case <-registration.HasSyncedChecker().Done():
		close(g.loaded)
	case <-ctx.Done():
	}
	following.Wait()
	return nil
}

// Loaded is closed once the list has been read.
func (g *Guard) Loaded() <-chan struct{} { return g.loaded }

// OnChange registers f to be called after every change of the list. It must not block.
func (g *Guard) OnChange(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.callbacks = append(g.callbacks, f)
}

// Revoked reports whether cert is revoked, and why. After the start it waits for the list, and
// returns ErrNotRead if ctx ends first or the wait takes too long.
func (g *Guard) Revoked(ctx context.Context, cert *x509.Certificate) (reason string, revoked bool, err error) {
	if err := g.wait(ctx); err != nil {
		return "", false, err
	}
	if e := g.list.Load().find(cert); e != nil {
		return e.why(), true, nil
	}
	return "", false, nil
}

// NodeRevoked reports whether a node of this name must not join. It waits as Revoked does.
func (g *Guard) NodeRevoked(ctx context.Context, name string) (bool, error) {
	if err := g.wait(ctx); err != nil {
		return false, err
	}
	for _, e := range g.list.Load().users[NodeUser(name)] {
		if !e.MayReturn {
			return true, nil
		}
	}
	return false, nil
}

// Admit excepts a certificate that is about to be handed out from an earlier revocation of its
// user. Once it returns, this server accepts the certificate.
func (g *Guard) Admit(ctx context.Context, cert *x509.Certificate) error {
	object, err := Admit(ctx, g.config.Client, cert)
	if object != nil {
		g.apply(object)
	}
	return err
}

// wait waits until the list has been read, as long as ctx and Config.Wait allow.
func (g *Guard) wait(ctx context.Context) error {
	select {
	case <-g.loaded:
		return nil
	default:
	}
	timer := time.NewTimer(g.config.Wait)
	defer timer.Stop()
	select {
	case <-g.loaded:
		return nil
	case <-timer.C:
		return ErrNotRead
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotRead, ctx.Err())
	}
}

func (g *Guard) apply(object *corev1.ConfigMap) { g.replace(object.ResourceVersion, object.Data) }

func (g *Guard) deleted() {
	if n := len(g.list.Load().entries); n > 0 {
		g.config.Logger.Warn("the list of revoked certificates was deleted: nothing on it is refused any more",
			zap.String("configmap", Namespace+"/"+Name), zap.Int("entries", n))
	}
	g.replace("", nil)
}

// replace makes the ConfigMap's data the list, unless the list is from a later version.
func (g *Guard) replace(version string, data map[string]string) {
	g.mu.Lock()
	old := g.list.Load()
	if order, err := resourceversion.CompareResourceVersion(version, old.version); err == nil && order <= 0 {
		g.mu.Unlock()
		return
	}
	l, errs := old.next(version, data)
	// A request is registered before it reads the list: either it sees the new list or it is cut
	// here.
	g.list.Store(l)
	clear(g.logged)
	var cut []*request
	for f := range g.requests {
		if l.find(f.cert) != nil {
			cut = append(cut, f)
		}
	}
	callbacks := g.callbacks
	g.mu.Unlock()

	for _, f := range cut {
		f.cut()
	}
	g.logChanges(old, l, errs, len(cut))
	for _, f := range callbacks {
		f()
	}
}

// logChanges logs each difference between two lists.
func (g *Guard) logChanges(old, l *list, errs []error, cut int) {
	log := g.config.Logger
	for _, err := range errs {
		log.Error(err.Error() + "; its last readable version, if any, stays in force: correct it with kubectl edit")
	}
	for key, e := range l.entries {
		if _, known := old.entries[key]; !known {
			log.Info("revoked "+e.Subject(), zap.String("reason", e.Reason), zap.String("by", e.By),
				zap.Time("at", e.since()))
		}
	}
	for key, e := range old.entries {
		if _, still := l.entries[key]; !still {
			log.Info("no longer revoked: " + e.Subject())
		}
	}
	if cut > 0 {
		log.Info("cut running requests of revoked certificates", zap.Int("requests", cut))
	}
}
