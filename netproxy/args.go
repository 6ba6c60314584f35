package netproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

// Default addresses of kube-proxy.
const (
	DefaultHealthzAddress = "0.0.0.0:10256"
	DefaultMetricsAddress = "127.0.0.1:10249"
)

// Args are the settings of kube-proxy that mote supports.
type Args struct {
	// Mode, NodePortAddresses, HealthzAddress and MetricsAddress are those of [Config].
	Mode                           string
	NodePortAddresses              []string
	HealthzAddress, MetricsAddress string
}

// ParseArgs parses arguments of the form flag=value, named like kube-proxy's flags, over
// kube-proxy's defaults. It returns all errors; each names the argument and says what would be
// valid.
func ParseArgs(args []string) (Args, error) {
	out := Args{HealthzAddress: DefaultHealthzAddress, MetricsAddress: DefaultMetricsAddress}
	var errs []error
	report := func(format string, arg ...any) { errs = append(errs, fmt.Errorf("kube-proxy-arg "+format, arg...)) }
	for _, arg := range args {
		name, value := upstreamflag.Split(arg)
		switch name {
		case "proxy-mode":
			switch value {
			case ModeAuto, ModeNFTables, ModeIPTables:
				out.Mode = value
			default:
				report("%q: mode is none of nftables, iptables", arg)
			}
		case "nodeport-addresses":
			out.NodePortAddresses = nil
			for _, cidr := range strings.Split(value, ",") {
				if _, err := netip.ParsePrefix(cidr); err != nil {
					report("%q: %q is no range of addresses: write it as 192.168.1.0/24", arg, cidr)
					continue
				}
				out.NodePortAddresses = append(out.NodePortAddresses, cidr)
			}
		case "healthz-bind-address", "metrics-bind-address":
			at := &out.HealthzAddress
			if name == "metrics-bind-address" {
				at = &out.MetricsAddress
			}
			address, err := listenAddress(value, *at)
			if err != nil {
				report("%q: %v", arg, err)
			}
			*at = address
		default:
			report(
				"%q is not supported: mote has proxy-mode, nodeport-addresses, healthz-bind-address and "+
					"metrics-bind-address", arg)
		}
	}
	return out, errors.Join(errs...)
}

var errNoAddress = errors.New("no address: write it as IP:PORT, or nothing to serve it nowhere")

// listenAddress parses an address to listen on. As with kube-proxy the port is optional. Empty
// means not to listen.
func listenAddress(text, otherwise string) (string, error) {
	if text == "" {
		return "", nil
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		_, port, _ := net.SplitHostPort(otherwise)
		return net.JoinHostPort(ip.String(), port), nil
	}
	if _, err := netip.ParseAddrPort(text); err != nil {
		return "", errNoAddress
	}
	return text, nil
}
