package nfttool

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of the kernel's nf_tables.h and nfnetlink.h.
const (
	getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	generationID  = 1 // NFTA_GEN_ID
)

// errNoGeneration says that the kernel's answer had no number in it.
var errNoGeneration = errors.New("no generation in the answer")

// generation is the number of the packet filter's present state in this network namespace. Each transaction, whosever it
// is, raises it by one.
func generation() (uint32, error) {
	request := nl.NewNetlinkRequest(getGeneration, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	answers, err := request.Execute(unix.NETLINK_NETFILTER, newGeneration)
	if err != nil {
		return 0, fmt.Errorf("ask for the packet filter's generation: %w", err)
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
	return 0, fmt.Errorf("ask for the packet filter's generation: %w", errNoGeneration)
}
