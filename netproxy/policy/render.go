package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// direction is one of the two directions of policies.
type direction struct {
	name     string // of the base chain
	priority string
	own      string // the field with the selected pod's address
	peer     string // the field with the other address
	kind     networking.PolicyType
}

// Each direction has its own base chain: accept ends only one chain, so a packet must pass both.
var directions = []direction{
	{"egress", "filter - 2", "saddr", "daddr", networking.PolicyTypeEgress},
	{"ingress", "filter - 1", "daddr", "saddr", networking.PolicyTypeIngress},
}

// family is what differs between IPv4 and IPv6.
type family struct {
	name, set string
	v6        bool
}

var families = []family{{"ip", "ipv4_addr", false}, {"ip6", "ipv6_addr", true}}

// neighbours accepts IPv6 neighbour discovery between pods on one bridge. It consists of ordinary
// packets.
const neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"

// renderer collects the table's text.
type renderer struct {
	state  State
	chains strings.Builder
	errs   []error
}

// Render returns the body of the table that enforces the policies on the node's pods; empty means
// there is nothing to enforce. Of an invalid policy it drops what the policy allows, never what it
// forbids, and returns an error.
func Render(s State) (body string, err error) {
	r := &renderer{state: s}
	sortPods(r.state.Pods)
	policies := slices.Clone(s.Policies)
	slices.SortFunc(policies, func(a, b *networking.NetworkPolicy) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	var maps, bases strings.Builder
	isolated := make(map[string][]string) // addresses of isolated pods as pairs with themselves, by family
	enforced := false
	for _, d := range directions {
		used := make(map[string]*networking.NetworkPolicy) // by chain
		groups := make(map[string][]string)                // chains of policies, by chain of a group
		elements := make(map[string][]string)              // of the map, by family
		taken := make(map[netip.Addr]bool)                 // each address has one verdict
		for _, pod := range r.state.Pods {
			if !pod.Local {
				continue
			}
			var chains []string
			for _, p := range policies {
				if p.Namespace == pod.Namespace && applies(p, d.kind) && r.matches(&p.Spec.PodSelector, pod.Labels, p) {
					chain := chainName(d, p)
					used[chain] = p
					chains = append(chains, chain)
				}
			}
			if len(chains) == 0 {
				if !pod.Leaving {
					for _, ip := range pod.IPs {
						taken[ip] = true
					}
				}
				continue
			}
			group := d.name + "-pods-" + digest(strings.Join(chains, " "))
			groups[group] = chains
			for _, ip := range pod.IPs {
				if taken[ip] {
					continue
				}
				taken[ip] = true
				f := familyOf(ip)
				elements[f.name] = append(elements[f.name], fmt.Sprintf("%s : goto %s", ip, group))
				isolated[f.name] = append(isolated[f.name], fmt.Sprintf("%s . %s", ip, ip))
			}
		}
		if len(used) == 0 {
			continue
		}
		enforced = true
		for _, chain := range sortedKeys(used) {
			r.policyChain(d, chain, used[chain])
		}
		for _, group := range sortedKeys(groups) {
			fmt.Fprintf(&r.chains, "\n\tchain %s {\n", group)
			for _, chain := range groups[group] {
				fmt.Fprintf(&r.chains, "\t\tjump %s\n", chain)
			}
			r.chains.WriteString("\t\tcounter drop\n\t}\n")
		}
		fmt.Fprintf(&bases,
			"\n\tchain %s {\n\t\ttype filter hook forward priority %s; policy accept;\n\t\tct state "+
				"established,related accept\n\t\t%s\n", d.name, d.priority, neighbours)
		for _, f := range families {
			if len(elements[f.name]) == 0 {
				continue
			}
			slices.Sort(elements[f.name])
			name := d.name + "_" + f.name
			// Through a service of its own a pod reaches itself, from its own address: the proxier
			// masquerades the packet later.
			fmt.Fprintf(&bases, "\t\t%s saddr . %s daddr @%s accept\n", f.name, f.name, selfSet(f))
			fmt.Fprintf(&maps, "\n\tmap %s {\n\t\ttype %s : verdict\n\t\telements = {\n\t\t\t%s\n\t\t}\n\t}\n", name,
				f.set, strings.Join(elements[f.name], ",\n\t\t\t"))
			fmt.Fprintf(&bases, "\t\t%s %s vmap @%s\n", f.name, d.own, name)
		}
		bases.WriteString("\t}\n")
	}
	if !enforced {
		return "", errors.Join(r.errs...)
	}
	for _, f := range families {
		if pairs := isolated[f.name]; len(pairs) > 0 {
			slices.Sort(pairs)
			fmt.Fprintf(&maps, "\n\tset %s {\n\t\ttype %s . %s\n\t\telements = {\n\t\t\t%s\n\t\t}\n\t}\n", selfSet(f),
				f.set, f.set, strings.Join(slices.Compact(pairs), ",\n\t\t\t"))
		}
	}
	// Chains must come before the maps that refer to them.
	return "\tcomment \"mote: network policies of this node's pods\"\n" + r.chains.String() + maps.String() +
		bases.String(), errors.Join(r.errs...)
}

// selfSet is the name of the set that pairs the address of each isolated pod with itself.
func selfSet(f family) string { return "self_" + f.name }

// applies reports whether a policy has a direction. The API server defaults the types; without them
// they follow from the rules.
func applies(p *networking.NetworkPolicy, kind networking.PolicyType) bool {
	if len(p.Spec.PolicyTypes) > 0 {
		return slices.Contains(p.Spec.PolicyTypes, kind)
	}
	return kind == networking.PolicyTypeIngress || len(p.Spec.Egress) > 0
}

func (r *renderer) matches(selector *metav1.LabelSelector, set map[string]string, p *networking.NetworkPolicy) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
		return false
	}
	return s.Matches(labels.Set(set))
}

// chainName returns the name of a policy's chain. Object names can be longer than chain names
// allow, so it has a digest; a comment in the chain has the policy's name.
func chainName(d direction, p *networking.NetworkPolicy) string {
	return d.name + "-" + digest(p.Namespace+"/"+p.Name)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// policyChain writes what one policy allows in one direction.
func (r *renderer) policyChain(d direction, chain string, p *networking.NetworkPolicy) {
	var rules []string
	if d.kind == networking.PolicyTypeIngress {
		for _, rule := range p.Spec.Ingress {
			rules = append(rules, r.rule(d, p, rule.From, rule.Ports)...)
		}
	} else {
		for _, rule := range p.Spec.Egress {
			rules = append(rules, r.rule(d, p, rule.To, rule.Ports)...)
		}
	}
	fmt.Fprintf(&r.chains, "\n\tchain %s {\n\t\tcomment %q\n", chain, comment(p))
	for _, rule := range rules {
		fmt.Fprintf(&r.chains, "\t\t%s\n", rule)
	}
	r.chains.WriteString("\t}\n")
}

// comment names a policy within the 128 bytes nftables allows.
func comment(p *networking.NetworkPolicy) string {
	text := p.Namespace + "/" + p.Name
	return text[:min(len(text), 120)]
}

// rule renders one rule of a policy: any of the peers, on any of the ports.
func (r *renderer) rule(d direction, p *networking.NetworkPolicy, peers []networking.NetworkPolicyPeer,
	ports []networking.NetworkPolicyPort) []string {
	var out []string
	for _, f := range families {
		sources := r.sources(d, f, p, peers)
		for _, source := range sources {
			out = append(out, r.ports(d, f, p, source, ports)...)
		}
	}
	return out
}

// source is one set of peers a rule allows.
type source struct {
	match string // condition on the packet
	pods  []Pod  // the pods it matches, for their named ports
}

// sources renders the peers of a rule: one set for all selected pods, and one source per address
// block.
func (r *renderer) sources(d direction, f family, p *networking.NetworkPolicy,
	peers []networking.NetworkPolicyPeer) []source {
	if len(peers) == 0 {
		return []source{{match: "meta nfproto " + map[bool]string{false: "ipv4", true: "ipv6"}[f.v6],
			pods: r.state.Pods}}
	}
	var out []source
	var chosen []Pod
	for _, peer := range peers {
		if peer.IPBlock == nil {
			chosen = append(chosen, r.selected(p, peer)...)
			continue
		}
		match, err := block(d, f, peer.IPBlock)
		switch {
		case err != nil:
			r.errs = append(r.errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
		case match != "":
			out = append(out, source{match: match})
		}
	}
	if set := addressSet(f, chosen); set != "" {
		out = append(out, source{fmt.Sprintf("%s %s %s", f.name, d.peer, set), chosen})
	}
	return out
}

// selected returns the pods that match a peer's selectors.
func (r *renderer) selected(p *networking.NetworkPolicy, peer networking.NetworkPolicyPeer) []Pod {
	var out []Pod
	for _, pod := range r.state.Pods {
		if peer.NamespaceSelector == nil {
			if pod.Namespace != p.Namespace {
				continue
			}
		} else if set, ok := r.state.Namespaces[pod.Namespace]; !ok || !r.matches(peer.NamespaceSelector, set, p) {
			continue
		}
		if peer.PodSelector == nil || r.matches(peer.PodSelector, pod.Labels, p) {
			out = append(out, pod)
		}
	}
	return out
}

// block renders an address block, or nothing if it is of the other family.
func block(d direction, f family, b *networking.IPBlock) (string, error) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return "", fmt.Errorf("address block: %w", err)
	}
	if cidr.Addr().Is6() != f.v6 {
		return "", nil
	}
	match := fmt.Sprintf("%s %s %s", f.name, d.peer, cidr.Masked())
	var except []netip.Prefix
	for _, text := range b.Except {
		e, err := netip.ParsePrefix(text)
		if err != nil {
			return "", fmt.Errorf("address block: %w", err)
		}
		except = append(except, e.Masked())
	}
	for _, e := range except {
		match += fmt.Sprintf(" %s %s != %s", f.name, d.peer, e)
	}
	return match, nil
}

// addressSet renders the pods' addresses of a family as a set, or nothing if they have none.
func addressSet(f family, pods []Pod) string {
	var ips []netip.Addr
	for _, pod := range pods {
		for _, ip := range pod.IPs {
			if ip.Is6() == f.v6 {
				ips = append(ips, ip)
			}
		}
	}
	if len(ips) == 0 {
		return ""
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	texts := make([]string, 0, len(ips))
	for _, ip := range slices.Compact(ips) {
		texts = append(texts, ip.String())
	}
	return "{ " + strings.Join(texts, ", ") + " }"
}

// ports renders the ports a source may use.
func (r *renderer) ports(d direction, f family, p *networking.NetworkPolicy, from source,
	ports []networking.NetworkPolicyPort) []string {
	if len(ports) == 0 {
		return []string{from.match + " accept"}
	}
	var out []string
	numbers := make(map[corev1.Protocol][]string)
	for _, port := range ports {
		proto := corev1.ProtocolTCP
		if port.Protocol != nil {
			proto = *port.Protocol
		}
		switch {
		case port.Port == nil:
			out = append(out, fmt.Sprintf("%s meta l4proto %s accept", from.match, strings.ToLower(string(proto))))
		case port.Port.StrVal != "":
			out = append(out, r.namedPort(d, f, p, from, proto, port.Port.StrVal)...)
		case port.EndPort != nil:
			numbers[proto] = append(numbers[proto], fmt.Sprintf("%d-%d", port.Port.IntVal, *port.EndPort))
		default:
			numbers[proto] = append(numbers[proto], fmt.Sprint(port.Port.IntVal))
		}
	}
	for _, proto := range slices.Sorted(maps.Keys(numbers)) {
		for _, number := range numbers[proto] {
			// One rule per port: ranges in a set must not overlap, and users' ranges do.
			out = append(out, fmt.Sprintf("%s %s dport %s accept", from.match, strings.ToLower(string(proto)), number))
		}
	}
	return out
}

// namedPort renders a named port, whose number may differ between receiving pods. Those are the
// selected pods for ingress and the peers for egress.
func (r *renderer) namedPort(d direction, f family, p *networking.NetworkPolicy, from source, proto corev1.Protocol,
	name string) []string {
	receivers := from.pods
	if d.kind == networking.PolicyTypeIngress {
		receivers = nil
		for _, pod := range r.state.Pods {
			if pod.Local && pod.Namespace == p.Namespace && r.matches(&p.Spec.PodSelector, pod.Labels, p) {
				receivers = append(receivers, pod)
			}
		}
	}
	byNumber := make(map[int32][]Pod)
	for _, pod := range receivers {
		for _, port := range pod.Ports {
			if port.Name == name && port.Protocol == proto {
				byNumber[port.Number] = append(byNumber[port.Number], pod)
			}
		}
	}
	var out []string
	for _, number := range slices.Sorted(maps.Keys(byNumber)) {
		if set := addressSet(f, byNumber[number]); set != "" {
			out = append(out, fmt.Sprintf("%s %s daddr %s %s dport %d accept", from.match, f.name, set,
				strings.ToLower(string(proto)), number))
		}
	}
	return out
}

func familyOf(ip netip.Addr) family {
	if ip.Is6() {
		return families[1]
	}
	return families[0]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
