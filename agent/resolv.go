package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// resolvSources are where the host's resolvers are found, best first. With
// systemd-resolved, /etc/resolv.conf names a stub on loopback that no pod can
// reach, and the real ones are in the second file.
var resolvSources = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// writeResolvConf writes the resolv.conf for pods that use the host's DNS: its
// reachable name servers, without search domains, which would send names of
// the cluster to strangers.
func writeResolvConf(file string) error {
	var out bytes.Buffer
	out.WriteString("# Made by mote at every start from the host's resolvers.\n")
	for _, source := range resolvSources {
		servers := nameservers(source)
		for _, s := range servers {
			fmt.Fprintf(&out, "nameserver %s\n", s)
		}
		if len(servers) > 0 {
			break
		}
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write resolvers of pods: %w", err)
	}
	return nil
}

// nameservers lists the servers of a resolv.conf that a pod can reach; a file
// that cannot be read has none.
func nameservers(file string) []netip.Addr {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var servers []netip.Addr
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !a.IsLoopback() && len(servers) < 3 {
			servers = append(servers, a)
		}
	}
	return servers
}
