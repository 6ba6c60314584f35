package nfttool

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// From the kernel's nf_tables.h and nfnetlink.h.
const (
	getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	generationID  = 1 // NFTA_GEN_ID
)

// errNoGeneration is returned if the kernel's answer has no generation.
var errNoGeneration = errors.New("no generation in the answer")

// generation returns the generation of the ruleset of this network namespace. Every transaction,
// whoever makes it, increments it by one.
func generation() (uint32, error) {
	request := nl.NewNetlinkRequest(getGeneration, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	answers, err := request.Execute(unix.NETLINK_NETFILTER, newGeneration)
	if err != nil {
		return 0, fmt.Errorf("query the packet filter's generation: %w", err)
	}
	for _, answer := range answers {
		if len(answer) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("read the packet filter's generation: %w", err)
		}
		for _, a := range attributes {
			if a.Attr.Type == generationID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, fmt.Errorf("query the packet filter's generation: %w", errNoGeneration)
}
