package hostaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// settle is how long an address must have been gone before it counts as changed: leases are
	// renewed and cables plugged in again.
	settle = 5 * time.Second
	// poll is the time between two looks while the kernel reports nothing, as its reports can get
	// lost.
	poll = time.Minute
	// Pauses before the kernel's reports are subscribed to again.
	firstRetry, lastRetry = time.Second, time.Minute
)

// WaitChanged blocks until old is no longer an address of this machine while it has another one,
// for some seconds, or until ctx ends; then it returns ctx's error. A machine that only lost its
// network keeps its old address: pods on it go on as they are.
func WaitChanged(ctx context.Context, old net.IP) error {
	return waitChanged(ctx, old, list, subscribe)
}

// waitChanged takes what reads the addresses, and what calls changed for each report of the kernel
// until ctx ends or it fails.
func waitChanged(ctx context.Context, old net.IP, list func() ([]net.IP, error),
	subscribe func(ctx context.Context, changed func()) error) error {
	watchCtx, cancel := context.WithCancel(ctx)
	reported, watched := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(watched)
		watch(watchCtx, subscribe, func() {
			select {
			case reported <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		<-watched
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for since := (time.Time{}); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-reported:
		case <-timer.C:
		}
		all, err := list()
		if err != nil || len(all) == 0 || slices.ContainsFunc(all, old.Equal) {
			// Addresses that cannot be listed are not gone.
			since = time.Time{}
			timer.Reset(poll)
			continue
		}
		if since.IsZero() {
			since = time.Now()
		}
		left := settle - time.Since(since)
		if left <= 0 {
			return nil
		}
		timer.Reset(left)
	}
}

// watch keeps a subscription until ctx ends. After a gap it calls changed, as reports may have been
// lost: the kernel ends a subscription whose reader falls behind.
func watch(ctx context.Context, subscribe func(ctx context.Context, changed func()) error, changed func()) {
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry}
	for {
		started := time.Now()
		// What went wrong does not matter: WaitChanged looks from time to time anyway.
		_ = subscribe(ctx, changed)
		if time.Since(started) > lastRetry {
			backoff.Reset()
		}
		if backoff.Wait(ctx) != nil {
			return
		}
		changed()
	}
}

// errSubscriptionEnded says that the kernel ended a subscription.
var errSubscriptionEnded = errors.New("subscription ended")

func subscribe(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(updates, ctx.Done()); err != nil {
		cancel()
		return fmt.Errorf("watch addresses: %w", err)
	}
	// The library closes updates when its goroutine ends, which may still be sending.
	defer func() {
		cancel()
		for range updates {
		}
	}()
	for range updates {
		changed()
	}
	return fmt.Errorf("watch addresses: %w", errSubscriptionEnded)
}
