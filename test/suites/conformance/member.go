package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// member is one process of mote's and the node it runs.
type member struct {
	name   string
	host   *sandbox.Host // nil: in the sandbox itself
	log    *os.File
	cmd    *sandbox.Cmd // nil until it has run
	exited chan struct{}
}

var errEnded = errors.New("mote ended")

// newMember makes the i-th machine of a cluster, if there are several.
func newMember(i int, s settings) (*member, error) {
	m := &member{name: fmt.Sprintf("node-%d", i+1), exited: make(chan struct{})}
	log := "server.log"
	if i > 0 {
		log = m.name + ".log"
	}
	var err error
	if m.log, err = os.Create(filepath.Join(s.reports, log)); err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	if s.nodes > 1 {
		if m.host, err = sandbox.AddHost(sandbox.HostConfig{Name: m.name,
			Address: fmt.Sprintf("192.168.77.%d", 11+i)}); err != nil {
			m.log.Close()
			return nil, err
		}
	}
	return m, nil
}

// run starts mote and returns at once.
func (m *member) run(mote string, args ...string) error {
	cmd := m.host.Command(context.Background(), mote, args...)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.cmd = cmd
	go func() {
		defer close(m.exited)
		// How it ended is in ProcessState, for whoever waits.
		_ = cmd.Wait()
	}()
	return nil
}

// ended is an error if mote has ended.
func (m *member) ended() error {
	select {
	case <-m.exited:
		return fmt.Errorf("%s: %w: %v; see %s", m.name, errEnded, m.cmd.ProcessState, m.log.Name())
	default:
		return nil
	}
}

func (m *member) stop() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.exited:
		case <-time.After(10 * time.Second):
			_ = m.cmd.Process.Kill()
			<-m.exited
		}
	}
	m.log.Close()
}
