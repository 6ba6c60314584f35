//go:build linux

package sandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// What every host behind a NAT has, as homes do: the same network.
const (
	insideIP  = "10.66.0.2"
	routerLAN = "10.66.0.1"
)

// routerRules let out what comes from inside, under the router's address, and in only what answers
// it.
const routerRules = `
table ip router {
	chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
	chain through { type filter hook forward priority filter; policy drop; iifname "lan" accept; ct state established,related accept; }
}
`

// checkAddresses refuses what [Host.plugIn] has no way to do.
func (c HostConfig) checkAddresses() error {
	first, err := netip.ParseAddr(c.Address)
	if err != nil {
		return fmt.Errorf("read address: %w", err)
	}
	if c.Address6 != "" {
		further, err := netip.ParseAddr(c.Address6)
		if err != nil {
			return fmt.Errorf("read further address: %w", err)
		}
		if first.Is6() || further.Is4() {
			return fmt.Errorf("%s and %s are not of IPv4 and IPv6, in this order", first, further)
		}
	}
	if c.NAT && c.hasIPv6() {
		return errors.New("the router in front of a host translates IPv4 only")
	}
	return nil
}

func (c HostConfig) hasIPv6() bool { return c.Address6 != "" || isIPv6(c.Address) }

func isIPv6(address string) bool { return strings.Contains(address, ":") }

// connectIPv6 gives the sandbox and the rest of the world addresses of that family; that they have
// them is no error. Hosts without IPv6 notice nothing.
func connectIPv6() error {
	return runAll(
		"ip -n "+OutsideNetns+" addr replace "+OutsideIP6+"/64 dev "+bridge+" nodad",
		"ip addr replace "+HostIP6+"/64 dev eth0 nodad",
	)
}

// Address is the host's own, which behind a NAT means nothing to others.
func (h *Host) Address() string {
	if h.config.NAT {
		return insideIP
	}
	return h.config.Address
}

// Address6 is the host's further one; empty if it has none.
func (h *Host) Address6() string { return h.config.Address6 }

// OuterAddress is the one others see the host at.
func (h *Host) OuterAddress() string { return h.config.Address }

// port is the host's, or its router's, on the switch.
func (h *Host) port() string { return "port-" + h.config.Name }

func (h *Host) router() string { return "nat-" + h.config.Name }

// installRouter is for hosts behind a NAT. The router has power of its own.
func (h *Host) installRouter() error {
	if !h.config.NAT {
		return nil
	}
	if err := runAll(
		"ip netns add "+h.router(),
		"ip -n "+h.router()+" link set lo up",
		"ip -n "+OutsideNetns+" link add "+h.port()+" type veth peer name wan netns "+h.router(),
		"ip -n "+OutsideNetns+" link set "+h.port()+" addrgenmode none",
		"ip -n "+OutsideNetns+" link set "+h.port()+" master "+bridge+" up",
		"ip -n "+h.router()+" link set wan addrgenmode none",
		"ip -n "+h.router()+" addr add "+h.config.Address+"/24 dev wan",
		"ip -n "+h.router()+" link set wan up",
		"ip -n "+h.router()+" route add default via "+OutsideIP,
	); err != nil {
		return err
	}
	if err := run("ip", "netns", "exec", h.router(), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"); err != nil {
		return err
	}
	cmd := exec.Command("ip", "netns", "exec", h.router(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(routerRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set router's rules: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// uninstallRouter also unplugs the host from the switch.
func (h *Host) uninstallRouter() error {
	h.unplug()
	if _, err := os.Stat("/run/netns/" + h.router()); err != nil {
		return nil
	}
	return run("ip", "netns", "delete", h.router())
}

// unplug removes a cable. A host that lost its power took it along, sooner or later.
func (h *Host) unplug() {
	_ = exec.Command("ip", "-n", OutsideNetns, "link", "delete", h.port()).Run()
	// Whoever has the address next has another card, and nobody should look for this one for the
	// better part of a minute. A real machine makes that known when it gets the address.
	for _, family := range []string{"-4", "-6"} {
		_ = exec.Command("ip", family, "neigh", "flush", "dev", "eth0").Run()
		_ = exec.Command("ip", family, "-n", OutsideNetns, "neigh", "flush", "dev", bridge).Run()
	}
}

// plugIn connects a host that has just got power, to the switch or to its router.
func (h *Host) plugIn() error {
	first := strconv.Itoa(h.first)
	if h.config.NAT {
		_ = exec.Command("ip", "-n", h.router(), "link", "delete", "lan").Run()
		if err := runAll(
			"ip -n "+h.router()+" link add lan type veth peer name eth0 address "+h.mac()+" netns "+first,
			"ip -n "+h.router()+" link set lan addrgenmode none",
			"ip -n "+h.router()+" addr add "+routerLAN+"/24 dev lan",
			"ip -n "+h.router()+" link set lan up",
		); err != nil {
			return err
		}
	} else {
		h.unplug()
		if err := runAll(
			"ip -n "+OutsideNetns+" link add "+h.port()+" type veth peer name eth0 address "+h.mac()+" netns "+first,
			"ip -n "+OutsideNetns+" link set "+h.port()+" addrgenmode none",
			"ip -n "+OutsideNetns+" link set "+h.port()+" master "+bridge+" up",
		); err != nil {
			return err
		}
	}
	lines := []string{"link set eth0 up"}
	if !h.config.hasIPv6() {
		lines = slices.Insert(lines, 0, "link set eth0 addrgenmode none")
	}
	return h.ip(append(lines, h.addressing()...)...)
}

// addressing gives the host that is plugged in its addresses, and the ways to others.
func (h *Host) addressing() []string {
	var lines []string
	for _, a := range []string{h.Address(), h.config.Address6} {
		switch {
		case isIPv6(a):
			lines = append(lines, "addr add "+a+"/64 dev eth0 nodad", "-6 route replace default via "+OutsideIP6)
		case a != "":
			lines = append(lines, "addr add "+a+"/24 dev eth0", "route replace default via "+h.Gateway())
		}
	}
	return lines
}

// mac is that of the host's network card, which a reboot does not change.
func (h *Host) mac() string {
	sum := sha256.Sum256([]byte(h.config.Name))
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
}

// Gateway is the address of the machine that leads the host to others.
func (h *Host) Gateway() string {
	switch {
	case h.config.NAT:
		return routerLAN
	case isIPv6(h.config.Address):
		return OutsideIP6
	}
	return OutsideIP
}

// OnRouter prepares a command on the router of a host behind a NAT, which is the only machine that
// reaches the host.
func (h *Host) OnRouter(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.router(), name}, args...)...)
}

// ip runs that tool in the host's network, a line a command.
func (h *Host) ip(lines ...string) error {
	return onThreadOfItsOwn(func() error {
		if err := enterNamespaces(h.first); err != nil {
			return err
		}
		for _, l := range lines {
			if err := run("ip", strings.Fields(l)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Partition cuts the host off from all others, without its noticing: its cable stays in, and every
// packet is lost.
func (h *Host) Partition() error { return h.forward(false) }

// Heal ends what Partition began.
func (h *Host) Heal() error { return h.forward(true) }

func (h *Host) forward(on bool) error {
	// The states of a switch's port, as its protocol numbers them.
	state := map[bool]string{false: "0", true: "3"}[on]
	if err := run("bridge", "-n", OutsideNetns, "link", "set", "dev", h.port(), "state", state); err != nil {
		return fmt.Errorf("switch port of host %s: %w", h.config.Name, err)
	}
	return nil
}

// Move gives the host another address, as a router does that forgot it; behind a NAT the router
// gets it.
func (h *Host) Move(address string) error {
	h.config.Address = address
	var err error
	switch {
	case h.config.NAT:
		ip := "ip -n " + h.router() + " "
		err = runAll(ip+"addr flush dev wan", ip+"addr add "+address+"/24 dev wan",
			ip+"route replace default via "+OutsideIP)
	case h.On(): // otherwise it gets the address when it boots
		err = h.ip(append([]string{"addr flush dev eth0 scope global"}, h.addressing()...)...)
	}
	if err != nil {
		return fmt.Errorf("move host %s: %w", h.config.Name, err)
	}
	return nil
}
