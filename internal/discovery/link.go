package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

// group is the address and port of multicast DNS.
var group = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}

const (
	// joinEvery is how often interfaces that came up are joined.
	joinEvery = 15 * time.Second
	// findTime is how long Find waits for answers.
	findTime = 1500 * time.Millisecond
	// perSecond bounds answers: a node asks every few seconds at most.
	perSecond = 20
	// maxMessage is the longest message of multicast DNS.
	maxMessage = 9000
	// Pauses after a failed read.
	firstRetry, lastRetry = time.Second, time.Minute
)

// Announce answers questions for s on all links until ctx ends.
func Announce(ctx context.Context, s Server, log *zap.Logger) error {
	// A responder of the host's own, such as Avahi, has the port too.
	config := net.ListenConfig{Control: reuse}
	conn, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", group.Port))
	if err != nil {
		// Everything else works without it.
		log.Info("servers that move will not be found by multicast DNS", zap.Error(err))
		return nil
	}
	packets := ipv4.NewPacketConn(conn)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return conn.Close()
	})
	g.Go(func() error {
		ticker := time.NewTicker(joinEvery)
		defer ticker.Stop()
		for {
			for _, i := range links() {
				// It has usually joined before.
				if err := packets.JoinGroup(&i, group); err != nil && !errors.Is(err, unix.EADDRINUSE) {
					log.Debug("multicast DNS is not served on an interface", zap.String("interface", i.Name),
						zap.Error(err))
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
	g.Go(func() error { return answer(ctx, conn, s, log) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("answer multicast DNS: %w", err)
	}
	return nil
}

func answer(ctx context.Context, conn net.PacketConn, s Server, log *zap.Logger) error {
	buffer := make([]byte, maxMessage)
	var second time.Time
	answered := 0
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry}
	var failures retry.Failures
	for {
		n, from, err := conn.ReadFrom(buffer)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Short of memory, for one. Nothing else of the server depends on this.
			if failures.News(err) {
				log.Info("multicast DNS questions cannot be read; trying again", zap.Error(err))
			}
			if backoff.Wait(ctx) != nil {
				return nil
			}
			continue
		}
		backoff.Reset()
		if failures.Recovered() {
			log.Info("multicast DNS questions are read again")
		}
		// Answering only neighbours keeps forged questions from sending answers to anyone else.
		if !neighbour(from) {
			continue
		}
		data, err := s.reply(buffer[:n])
		if err != nil || data == nil {
			if err != nil {
				log.Debug("multicast DNS question not answered", zap.Error(err))
			}
			continue
		}
		if now := time.Now(); now.Sub(second) > time.Second {
			second, answered = now, 0
		}
		if answered++; answered > perSecond {
			continue
		}
		if _, err := conn.WriteTo(data, from); err != nil {
			log.Debug("multicast DNS answer not sent", zap.Error(err))
		}
	}
}

// Find asks on all links for servers of the cluster with the pin, and returns those that answer
// within findTime, as HOST:PORT. It is best effort: where the network cannot be asked it finds
// nothing.
func Find(ctx context.Context, pin string) []string {
	message, err := question()
	if err != nil {
		return nil
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	packets := ipv4.NewPacketConn(conn)
	for _, i := range links() {
		// An interface without multicast has no neighbours.
		if packets.SetMulticastInterface(&i) == nil {
			_, _ = conn.WriteTo(message, group)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(findTime)); err != nil {
		return nil
	}
	var out []string
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return out
		}
		for _, s := range read(buffer[:n], from.Addr(), pin) {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
}

// links returns the interfaces that have neighbours, without those of pods.
func links() []net.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(i net.Interface) bool {
		return i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 || i.Flags&net.FlagLoopback != 0 ||
			strings.HasPrefix(i.Name, "mote") || strings.HasPrefix(i.Name, "veth") || strings.HasPrefix(i.Name, "cni")
	})
}

// neighbour reports whether an address is in the network of one of the links.
func neighbour(address net.Addr) bool {
	from, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return false
	}
	for _, i := range links() {
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(from.Addr().Unmap()) {
				return true
			}
		}
	}
	return false
}

// reuse lets a socket share its port with others that allow it.
func reuse(_, _ string, c syscall.RawConn) error {
	var errs [2]error
	err := c.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, errs[0], errs[1])
}
