package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/mote-dev/mote/netproxy/nfttool"
)

// lockWait is how many seconds iptables waits for a lock held by another program.
const lockWait = 20

// iptablesFirewall keeps the node's rules in chains of its own. It is not safe for concurrent use.
type iptablesFirewall struct {
	// masquerade also writes the nat chain; otherwise only forwarded traffic is accepted.
	masquerade bool
	// onlyIfDropping writes nothing on hosts that accept forwarded and incoming packets anyway.
	onlyIfDropping bool

	applied string              // what was last applied, rendered
	listed  map[string][]string // how iptables listed each chain right afterwards
}

// iptablesFor returns the tool for a family, or nil if the host has none.
func iptablesFor(f family) (*iptables.IPTables, error) {
	name, proto := "iptables", iptables.ProtocolIPv4
	if f.v6 {
		name, proto = "ip6tables", iptables.ProtocolIPv6
		if ok, err := HostHasIPv6(); err != nil || !ok {
			return nil, err
		}
	}
	if _, err := exec.LookPath(name); err != nil {
		return nil, nil
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return ipt, nil
}

// Apply implements [firewall].
func (w *iptablesFirewall) Apply(ctx context.Context, r Rules) error {
	if w.onlyIfDropping {
		drops, err := w.mayDrop(ctx)
		if err != nil {
			return err
		}
		if !drops {
			w.applied, w.listed = renderIPTables(nil), map[string][]string{}
			return nil
		}
	}
	var text strings.Builder
	wanted := make(map[bool][]iptablesChain)
	for _, f := range families {
		chains := acceptChains(r, f)
		if w.masquerade {
			chains = append(chains, masqueradeChain(r, f))
		}
		wanted[f.v6] = chains
		text.WriteString(renderIPTables(chains))
	}
	if w.applied == text.String() {
		if ok, err := w.Intact(ctx); err != nil || ok {
			return err
		}
	}
	w.applied, w.listed = "", nil
	listed := make(map[string][]string)
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil {
			return err
		}
		if ipt == nil {
			if w.masquerade && !f.v6 {
				return errors.New("apply rules: iptables is not installed")
			}
			continue
		}
		for _, c := range wanted[f.v6] {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.applyChain(ipt, c); err != nil {
				return err
			}
			rules, err := ipt.List(c.table, c.name)
			if err != nil && len(c.rules) > 0 {
				return fmt.Errorf("list chain %s: %w", c.name, err)
			}
			listed[chainKey(f, c)] = rules
		}
	}
	w.applied, w.listed = text.String(), listed
	return nil
}

// applyChain fills one of our chains and makes the first rule of its parent jump to it.
func (w *iptablesFirewall) applyChain(ipt *iptables.IPTables, c iptablesChain) error {
	if len(c.rules) == 0 {
		return removeChain(ipt, c)
	}
	if err := ipt.ClearChain(c.table, c.name); err != nil {
		return fmt.Errorf("make chain %s: %w", c.name, err)
	}
	for _, rule := range c.rules {
		if err := ipt.Append(c.table, c.name, rule...); err != nil {
			return fmt.Errorf("append to chain %s: %w", c.name, err)
		}
	}
	if err := ipt.InsertUnique(c.table, c.parent, 1, c.jump()...); err != nil {
		return fmt.Errorf("jump to chain %s: %w", c.name, err)
	}
	return nil
}

// Intact implements [firewall].
func (w *iptablesFirewall) Intact(ctx context.Context) (bool, error) {
	if w.listed == nil {
		return false, nil
	}
	if w.onlyIfDropping && len(w.listed) == 0 {
		drops, err := w.mayDrop(ctx)
		return !drops, err
	}
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil {
			return false, err
		}
		for _, c := range ourChains() {
			want := w.listed[chainKey(f, c)]
			if ipt == nil || len(want) == 0 {
				continue
			}
			have, err := ipt.List(c.table, c.name)
			switch {
			case isNotExist(err):
				return false, nil
			case err != nil:
				return false, fmt.Errorf("list chain %s: %w", c.name, err)
			case !slices.Equal(have, want):
				return false, nil
			}
			ok, err := ipt.Exists(c.table, c.parent, c.jump()...)
			switch {
			case isNotExist(err):
				return false, nil
			case err != nil:
				return false, fmt.Errorf("look for the jump to chain %s: %w", c.name, err)
			case !ok:
				return false, nil
			}
		}
	}
	return true, nil
}

// Remove implements [firewall].
func (w *iptablesFirewall) Remove(ctx context.Context) error {
	w.applied, w.listed = "", nil
	var errs []error
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if ipt == nil {
			continue
		}
		for _, c := range ourChains() {
			errs = append(errs, ctx.Err(), removeChain(ipt, c))
		}
	}
	return errors.Join(errs...)
}

// removeChain deletes the jump and the chain, each of which may be missing.
func removeChain(ipt *iptables.IPTables, c iptablesChain) error {
	ok, err := chainExists(ipt, c.table, c.name)
	if err != nil || !ok {
		return err
	}
	if err := ipt.DeleteIfExists(c.table, c.parent, c.jump()...); err != nil {
		return fmt.Errorf("unlink chain %s: %w", c.name, err)
	}
	if err := ipt.ClearAndDeleteChain(c.table, c.name); err != nil {
		return fmt.Errorf("delete chain %s: %w", c.name, err)
	}
	return nil
}

// isNotExist reports whether iptables answered that the table, chain or rule does not exist. A
// table can be missing because the kernel does not know it. Exit code 1 is for missing chains,
// which iptables 1.8.9 calls incompatible; locks, memory and permissions have others.
func isNotExist(err error) bool {
	var e *iptables.Error
	return errors.As(err, &e) && (e.ExitStatus() == 1 || e.IsNotExist())
}

// chainExists reports whether a chain exists; one in a table that does not exist does not.
func chainExists(ipt *iptables.IPTables, table, chain string) (bool, error) {
	ok, err := ipt.ChainExists(table, chain)
	if isNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for chain %s: %w", chain, err)
	}
	return ok, nil
}

// mayDrop reports whether the host has iptables rules that could drop pod traffic. It does not run
// iptables on hosts that never used it, because that may load kernel modules.
func (w *iptablesFirewall) mayDrop(ctx context.Context) (bool, error) {
	if !IPTablesInUse(ctx) {
		return false, nil
	}
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil {
			return false, err
		}
		if ipt == nil {
			continue
		}
		for _, parent := range []string{"FORWARD", "INPUT"} {
			rules, err := ipt.List("filter", parent)
			switch {
			case isNotExist(err):
			case err != nil:
				return false, fmt.Errorf("list chain %s: %w", parent, err)
			case slices.ContainsFunc(rules, dropsPackets):
				return true, nil
			}
		}
	}
	return false, nil
}

// dropsPackets reports whether a line in the listing of a built-in chain is a DROP policy or jumps
// to rules we cannot judge.
func dropsPackets(line string) bool {
	if rest, ok := strings.CutPrefix(line, "-P "); ok {
		return strings.HasSuffix(rest, " DROP")
	}
	_, target, ok := strings.Cut(line, " -j ")
	return ok && !strings.HasPrefix(target, "MOTE-") && !strings.HasPrefix(target, "KUBE-") && target != "ACCEPT"
}

// IPTablesInUse reports whether the kernel has iptables tables, legacy or nftables-based. It is
// cheap and, unlike running iptables, loads no kernel modules.
func IPTablesInUse(ctx context.Context) bool {
	for _, path := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if text, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(text))) > 0 {
			return true
		}
	}
	tables, err := nfttool.Run(ctx, "", "list", "tables")
	if err != nil {
		// Without nft there is no cheap way to find nftables-based tables. The caller then runs
		// iptables, which is safe.
		return true
	}
	for line := range strings.Lines(tables) {
		switch strings.TrimSpace(line) {
		case "table ip filter", "table ip6 filter", "table ip nat", "table ip6 nat", "table ip mangle",
			"table ip6 mangle":
			return true
		}
	}
	return false
}

// ourChains names every chain this file creates.
func ourChains() []iptablesChain {
	return []iptablesChain{
		{table: "filter", parent: "FORWARD", name: chainForward},
		{table: "filter", parent: "INPUT", name: chainInput},
		{table: "nat", parent: "POSTROUTING", name: chainPostrouting},
	}
}

func chainKey(f family, c iptablesChain) string {
	if f.v6 {
		return "6 " + c.name
	}
	return "4 " + c.name
}
