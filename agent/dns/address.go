package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

// addressCheck is how often the interface is checked even if no change is reported.
const addressCheck = time.Minute

// addressKeeper keeps the listen addresses on an interface of the node.
type addressKeeper struct {
	name  string
	addrs []netip.AddrPort
	log   *zap.Logger
}

// ensure creates the interface, sets it up and adds the addresses, whichever is missing.
func (k addressKeeper) ensure() error {
	link, err := netlink.LinkByName(k.name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		link, err = makeLink(k.name)
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", k.name, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set interface %s up: %w", k.name, err)
		}
	}
	for _, a := range k.addrs {
		ip := a.Addr()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}}
		if ip.Is6() {
			// No other host is on this link. Duplicate address detection would delay the address by
			// a second or two.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add %s to interface %s: %w", ip, k.name, err)
		}
	}
	return nil
}

// makeLink creates an interface that leads nowhere: a dummy, or a bridge without ports on kernels
// without the dummy driver.
func makeLink(name string) (netlink.Link, error) {
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}})
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return netlink.LinkByName(name)
}

// run repairs the interface until ctx ends.
func (k addressKeeper) run(ctx context.Context) error {
	updates, unsubscribe := k.subscribe(ctx)
	defer func() { unsubscribe() }()
	tick := time.NewTicker(addressCheck)
	defer tick.Stop()
	var failures retry.Failures
	for {
		select {
		case <-ctx.Done():
			// The subscription ends by closing its channel; until then it may wait for room in it.
			for updates != nil {
				if _, ok := <-updates; !ok {
					break
				}
			}
			return nil
		case u, ok := <-updates:
			if !ok {
				// The socket overflows when many addresses change at once. The tick subscribes
				// again.
				updates = nil
				unsubscribe()
				continue
			}
			if u.NewAddr || !k.ours(u.LinkAddress.IP) {
				continue
			}
		case <-tick.C:
			if updates == nil {
				updates, unsubscribe = k.subscribe(ctx)
			}
		}
		if err := k.ensure(); err != nil {
			if failures.News(err) {
				k.log.Error("cluster DNS address is missing; retrying", zap.Error(err))
			}
		} else if failures.Recovered() {
			k.log.Info("cluster DNS address is back")
		}
	}
}

// subscribe reports changes of the host's addresses until ctx ends or end is called. If that is not
// possible, the channel is nil, and the tick still repairs.
func (k addressKeeper) subscribe(ctx context.Context) (updates chan netlink.AddrUpdate, end context.CancelFunc) {
	ctx, end = context.WithCancel(ctx)
	updates = make(chan netlink.AddrUpdate, 16)
	err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(),
		netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
			k.log.Debug("watch of addresses interrupted", zap.Error(err))
		}})
	if err != nil {
		k.log.Debug("address changes are not reported", zap.Error(err))
		return nil, end
	}
	return updates, end
}

func (k addressKeeper) ours(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false
	}
	for _, own := range k.addrs {
		if own.Addr() == a.Unmap() {
			return true
		}
	}
	return false
}

// Cleanup removes the interface that a [Server] created; name is the one in its config, empty means
// mote-dns. A missing interface is no error.
func Cleanup(name string) error {
	if name == "" {
		name = DefaultInterface
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if t := link.Type(); t != "dummy" && t != "bridge" {
		return fmt.Errorf("remove interface %s: it is a %s, not created by mote", name, t)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}
