package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/mote-dev/mote/internal/joinapi"
)

// quiet discards errors of single streams, which the server reports.
var quiet = log.New(io.Discard, "", 0)

// errRefused means that a target must not be reached through this node.
var errRefused = errors.New("refused by the node")

// target returns the address of a target, if it may be reached.
func (t *Tunnel) target(name string) (string, error) {
	if name == joinapi.TunnelKubelet {
		return t.config.Kubelet, nil
	}
	address, err := netip.ParseAddrPort(name)
	if err != nil {
		return "", fmt.Errorf("%w: target %q is neither its kubelet nor the address of one of its pods", errRefused,
			name)
	}
	ranges := t.config.PodCIDRs()
	if len(ranges) == 0 {
		return "", fmt.Errorf("%w: the addresses of its pods are not known yet", errRefused)
	}
	ip := address.Addr().Unmap().WithZone("")
	if !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return "", fmt.Errorf("%w: %s is not in the range of its pods", errRefused, ip)
	}
	// The bridge of the pod network has an address in that range, at which all of the machine's own
	// services listen.
	own, err := t.own()
	if err != nil {
		return "", fmt.Errorf("%w: its own addresses are not known: %w", errRefused, err)
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			if mine, ok := netip.AddrFromSlice(n.IP); ok && mine.Unmap() == ip {
				return "", fmt.Errorf("%w: %s is its own address and no pod's", errRefused, ip)
			}
		}
	}
	return netip.AddrPortFrom(ip, address.Port()).String(), nil
}

// serveStream connects one stream with its target.
func (t *Tunnel) serveStream(w http.ResponseWriter, r *http.Request) {
	if !t.work.begin() {
		panic(http.ErrAbortHandler)
	}
	defer t.work.end()
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT is served here", http.StatusMethodNotAllowed)
		return
	}
	address, err := t.target(r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer conn.Close()
	flush := http.NewResponseController(w).Flush
	w.WriteHeader(http.StatusOK)
	if flush() != nil || splice(w, flush, r.Body, conn.(*net.TCPConn)) != nil {
		// The server must not mistake this for the end of the data.
		panic(http.ErrAbortHandler)
	}
}

// splice copies in both directions until both have ended, independently of each other.
func splice(w io.Writer, flush func() error, body io.ReadCloser, conn *net.TCPConn) error {
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, body)
		if err != nil {
			// Nothing reads from the server any more either: this ends the other direction.
			_ = conn.Close()
		} else {
			// This fails if the target is gone, which the other direction reports.
			_ = conn.CloseWrite()
		}
		up <- err
	}()
	err := joinapi.WriteFrames(w, flush, conn)
	if err != nil {
		// This ends the goroutine, whichever of the two it waits for.
		_ = conn.Close()
		_ = body.Close()
	}
	return errors.Join(err, <-up)
}
