package election

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mote-dev/mote/internal/retry"
)

// ErrLost means that this server led and could not renew its lease in time: another one may lead.
// The process has to end, as the part that ran cannot be started twice in one process.
var ErrLost = errors.New("this server no longer leads")

// Timing is the timing of leaders and candidates.
type Timing struct {
	// Lease is how long after its last renewal a leader is considered gone.
	Lease time.Duration
	// Renew is how long a leader tries to renew before it gives up the lead.
	Renew time.Duration
	// Retry is the pause between attempts of both.
	Retry time.Duration
}

// Default is the timing of upstream's components, but for half of their retry period of two
// seconds. Pauses are up to 2.2 times as long, and both the last renewal and the end of the lease
// are noticed after one: with two seconds it could take 23.8 until another server leads, with one
// it is 19.4.
var Default = Timing{Lease: 15 * time.Second, Renew: 10 * time.Second, Retry: time.Second}

// Config describes a candidate.
type Config struct {
	// Client may read and write leases in kube-system.
	Client kubernetes.Interface
	// Lease is the name of the lease in kube-system.
	Lease string
	// NodeName is this server's, for people who read the lease.
	NodeName string
	Timing   Timing
	Logger   *zap.Logger
}

// Lead waits until this server leads and then runs work, whose context ends when ctx does or when
// the lead is lost. It releases the lease once work has returned, so that the next leader need not
// wait for it to expire, and returns ErrLost if the lead was lost.
func Lead(ctx context.Context, c Config, work func(context.Context) error) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: c.Lease},
		Client:    c.Client.CoordinationV1(),
		// A new one each time: a restarted process is another leader.
		LockConfig: resourcelock.ResourceLockConfig{Identity: c.NodeName + "_" + string(uuid.NewUUID())},
	}
	leads := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		Name:          c.Lease,
		LeaseDuration: c.Timing.Lease,
		RenewDeadline: c.Timing.Renew,
		RetryPeriod:   c.Timing.Retry,
		// Upstream would first try to release a lease that it could not renew, and report the loss
		// only afterwards: ten seconds late when the datastore is away.
		ReleaseOnCancel: false,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leads) },
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if identity != lock.Identity() {
					c.Logger.Info("another server leads", zap.String("lease", c.Lease), zap.String("leader", identity))
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("stand for %s: %w", c.Lease, err)
	}
	// The lease is held until work has returned, which is after ctx has ended.
	standing, resign := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(standing)
	}()
	defer func() {
		resign()
		<-ended
		// If it never led or has lost the lead, the lease is another server's.
		if elector.IsLeader() {
			c.giveBack(ctx, lock)
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-leads:
	}
	c.Logger.Info("this server leads", zap.String("lease", c.Lease))
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ended:
			stop(ErrLost)
		case <-working.Done():
		}
	}()
	err = work(working)
	stop(nil)
	<-watched
	if errors.Is(context.Cause(working), ErrLost) {
		return c.lost(ctx, lock)
	}
	return err
}

// giveBack releases the lease, so that the next leader begins at once. If that fails, the lease
// expires.
func (c Config) giveBack(ctx context.Context, lock resourcelock.Interface) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Timing.Renew)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err == nil && record.HolderIdentity == lock.Identity() {
		// This is how upstream marks a lease that nobody holds.
		now := metav1.Now()
		err = lock.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaderTransitions:    record.LeaderTransitions,
			LeaseDurationSeconds: 1,
			RenewTime:            now,
			AcquireTime:          now,
		})
	}
	if err != nil {
		c.Logger.Warn("the next leader has to wait until the lease runs out", zap.String("lease", c.Lease),
			zap.Error(err))
	}
}

// lost waits until the API answers before it returns ErrLost. While the datastore is away nobody
// leads, and a process that ended could not start again; meanwhile the node beside it goes on. A
// lease that somebody has deleted is an answer: whoever creates it leads.
func (c Config) lost(ctx context.Context, lock resourcelock.Interface) error {
	c.Logger.Error("the lead is lost and what it was for has stopped: the lease could not be renewed in time",
		zap.String("lease", c.Lease))
	backoff := retry.Backoff{First: c.Timing.Retry, Last: c.Timing.Renew, Jitter: 0.2}
	for !c.answers(ctx, lock) {
		if backoff.Wait(ctx) != nil {
			return nil
		}
	}
	return fmt.Errorf("%w (lease %s): start it again, as its service does; pods run on", ErrLost, c.Lease)
}

// answers reports whether the API answers.
func (c Config) answers(ctx context.Context, lock resourcelock.Interface) bool {
	ctx, cancel := context.WithTimeout(ctx, c.Timing.Renew)
	defer cancel()
	_, _, err := lock.Get(ctx)
	return err == nil || apierrors.IsNotFound(err)
}
