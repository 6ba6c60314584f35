package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// nftSubsystem is NFNL_SUBSYS_NFTABLES, the upper byte of nftables message types.
	nftSubsystem = 10
	// nftGroup is NFNLGRP_NFTABLES, the multicast group of nftables changes.
	nftGroup = 7
	// nfgenHeader is the length of struct nfgenmsg in front of the attributes.
	nfgenHeader = 4
	// attrTable is the attribute that names the table. It has this number in all message kinds used
	// here.
	attrTable = 1
)

// Message kinds of nftables that can mean the loss of rules.
const (
	nftDelTable   = 2
	nftNewChain   = 3
	nftDelChain   = 5
	nftNewRule    = 6
	nftDelRule    = 8
	nftDelSet     = 11
	nftDelElement = 14
)

// nftEvent is one change of the nftables ruleset.
type nftEvent struct {
	kind  uint16
	table string
}

// parseNFTEvent parses a message of the nftables multicast group; ok is false for any other
// message.
func parseNFTEvent(msgType uint16, data []byte) (ev nftEvent, ok bool) {
	if msgType>>8 != nftSubsystem || len(data) < nfgenHeader {
		return nftEvent{}, false
	}
	ev.kind = msgType & 0xff
	attrs := data[nfgenHeader:]
	for len(attrs) >= 4 {
		size := int(binary.NativeEndian.Uint16(attrs))
		kind := binary.NativeEndian.Uint16(attrs[2:])
		if size < 4 || size > len(attrs) {
			break
		}
		if kind == attrTable {
			name := attrs[4:size]
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
			ev.table = string(name)
			break
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return ev, true
}

// watchSocket calls handle for every message of the netlink groups until ctx ends. It reopens the
// socket after an error, such as an overrun. It calls lost when messages may have been missed: at
// the error, and again once there is a new socket, for changes in between.
func watchSocket(ctx context.Context, log *zap.Logger, protocol int, groups []uint,
	handle func(msgType uint16, data []byte), lost func()) error {
	const firstWait, lastWait = time.Second, time.Minute
	backoff := retry.Backoff{First: firstWait, Last: lastWait}
	opened := func() {}
	for {
		started := time.Now()
		err := readSocket(ctx, protocol, groups, opened, handle)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			// The kernel lacks this netlink protocol; the periodic check has to do.
			log.Info("kernel does not report changes; checking in intervals", zap.Int("protocol", protocol))
			<-ctx.Done()
			return nil
		}
		lost()
		opened = lost
		if time.Since(started) > lastWait {
			backoff.Reset()
		}
		wait := backoff.Next()
		log.Debug("watch of kernel changes interrupted", zap.Error(err), zap.Duration("retry_in", wait))
		if retry.Sleep(ctx, wait) != nil {
			return nil
		}
	}
}

// readSocket reads messages until an error or until ctx ends. It calls opened before the first
// read.
func readSocket(ctx context.Context, protocol int, groups []uint, opened func(),
	handle func(msgType uint16, data []byte)) error {
	sock, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	// Only closing ends a blocked read. It must happen exactly once.
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		sock.Close()
		close(closed)
	})
	defer func() {
		if stop() {
			sock.Close()
			return
		}
		<-closed
	}()
	opened()
	for {
		msgs, from, err := sock.Receive()
		if err != nil {
			return fmt.Errorf("read netlink socket: %w", err)
		}
		if from != nil && from.Pid != nl.PidKernel {
			continue
		}
		for _, m := range msgs {
			handle(m.Header.Type, m.Data)
		}
	}
}

// watchLinks reports changes of interfaces, addresses and routes.
func watchLinks(ctx context.Context, log *zap.Logger, changed func()) error {
	groups := []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE}
	return watchSocket(ctx, log, unix.NETLINK_ROUTE, groups, func(uint16, []byte) { changed() }, changed)
}

// watchRules reports changes of the nftables ruleset, and the zero event after a gap.
func watchRules(ctx context.Context, log *zap.Logger, changed func(nftEvent)) error {
	handle := func(msgType uint16, data []byte) {
		if ev, ok := parseNFTEvent(msgType, data); ok {
			changed(ev)
		}
	}
	return watchSocket(ctx, log, unix.NETLINK_NETFILTER, []uint{nftGroup}, handle, func() { changed(nftEvent{}) })
}
