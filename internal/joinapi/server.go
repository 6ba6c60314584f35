package joinapi

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// DefaultPort is the port of a server's address that names none, and the one a server listens on
// unless it is told another.
const DefaultPort = 6443

// ErrServerForm says that a text is no address of a server.
var ErrServerForm = errors.New("no address of a server")

const serverForm = "write it as https://HOST:6443; without a port it is 6443"

var (
	labelForm = `[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?`
	hostForm  = regexp.MustCompile(`^` + labelForm + `(\.` + labelForm + `)*\.?$`)
	// A name whose last label is a number is an IPv4 address to every resolver, here a wrong one.
	numericEnd = regexp.MustCompile(`(^|\.)[0-9]+\.?$`)
)

// ParseServer reads the address of a server as a person writes it, and returns HOST:PORT. The
// scheme, the port and a slash at the end may be left out, and the brackets of an IPv6 address
// where no port follows it.
func ParseServer(text string) (string, error) {
	fault := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%w: "+format, append([]any{ErrServerForm}, args...)...)
	}
	rest := text
	if scheme, after, ok := strings.Cut(text, "://"); ok {
		if strings.EqualFold(scheme, "http") {
			return fault("servers speak HTTPS only: %s", serverForm)
		}
		if !strings.EqualFold(scheme, "https") {
			return fault("the scheme %s is not https: %s", scheme, serverForm)
		}
		rest = after
	}
	rest = strings.TrimSuffix(rest, "/")
	if strings.ContainsAny(rest, "/?#") {
		return fault("it has a path: %s", serverForm)
	}
	if strings.Contains(rest, "@") {
		return fault("it has a user name: %s", serverForm)
	}
	host, port, err := splitServer(rest)
	if err != nil {
		return fault("%w", err)
	}
	if address, err := netip.ParseAddr(host); err == nil {
		switch address = address.Unmap(); {
		case address.Zone() != "":
			return fault("the interface in %s means something on one machine only: leave it out, or give another "+
				"address", host)
		case address.IsUnspecified(), address.IsMulticast():
			return fault("%s is no machine's: give the one the server is reached at", address)
		}
		return net.JoinHostPort(address.String(), port), nil
	}
	switch {
	case host == "":
		return fault("the host is missing: %s", serverForm)
	case numericEnd.MatchString(host):
		return fault("%s is neither an IP address nor a name: %s", host, serverForm)
	case len(host) > 253 || !hostForm.MatchString(host):
		return fault("%q is neither an IP address nor a name of letters, digits, '-' and '.': %s", host, serverForm)
	}
	return net.JoinHostPort(strings.ToLower(host), port), nil
}

// splitServer takes host and port apart.
func splitServer(text string) (host, port string, err error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return address.String(), strconv.Itoa(DefaultPort), nil
	}
	if inside, after, ok := strings.Cut(text, "]"); ok && strings.HasPrefix(inside, "[") {
		host = inside[1:]
		if address, err := netip.ParseAddr(unescapeZone(host)); err != nil || !address.Is6() {
			return "", "", fmt.Errorf("%s is no IPv6 address: only those have brackets", host)
		}
		host = unescapeZone(host)
		if after == "" {
			return host, strconv.Itoa(DefaultPort), nil
		}
		if after[0] != ':' {
			return "", "", fmt.Errorf("%q follows the brackets: %s", after, serverForm)
		}
		port = after[1:]
	} else {
		var found bool
		if host, port, found = strings.Cut(text, ":"); !found {
			return host, strconv.Itoa(DefaultPort), nil
		}
		if strings.Contains(port, ":") {
			return "", "", fmt.Errorf("%s is no IP address: write an IPv6 one with a port as https://[ADDRESS]:6443",
				text)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", "", fmt.Errorf("%q is no TCP port: use 1 to 65535, or leave it out for 6443", port)
	}
	return host, strconv.FormatUint(n, 10), nil
}

// unescapeZone reads the %25 with which a URL separates an address from its interface.
func unescapeZone(host string) string {
	if plain, err := url.PathUnescape(host); err == nil {
		return plain
	}
	return host
}
