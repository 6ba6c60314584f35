package server

import (
	"net"
	"slices"
)

// hostAddresses are the addresses of this machine that others can use: global
// unicast ones of interfaces that are up, those of the default route's
// interface first. made names interfaces mote made itself, which are left out.
func hostAddresses() []net.IP {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var found []net.IP
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || ownInterface(i.Name) {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				found = append(found, n.IP)
			}
		}
	}
	if preferred := routeAddress(); preferred != nil {
		found = slices.DeleteFunc(found, preferred.Equal)
		found = append([]net.IP{preferred}, found...)
	}
	return found
}

// routeAddress is the address the kernel would send from to reach other
// networks; nil without a default route. Nothing is sent: connecting a UDP
// socket only looks up the route.
func routeAddress() net.IP {
	conn, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	address, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok || !address.IP.IsGlobalUnicast() {
		return nil
	}
	return address.IP
}

// ownInterface tells whether mote (or its pods' network) made an interface.
func ownInterface(name string) bool {
	return len(name) >= 4 && (name[:4] == "mote" || name[:4] == "veth")
}
