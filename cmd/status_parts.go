package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/internal/part"
)

// RoleStatus is the state of the parts of one role.
type RoleStatus struct {
	Role  string        `json:"role"`
	Parts []part.Status `json:"parts"`
	// Node is the state of a node whose server is on another machine; nil otherwise.
	Node *agent.Health `json:"node,omitempty"`
}

// roleReport returns the state of the parts of a role in this process.
type roleReport struct {
	role   string
	report func() []part.Status
	// health is nil but for a node whose server is on another machine.
	health func() agent.Health
}

// serveStatus answers `mote status` on a socket until ctx ends. Without it only the parts' states
// are missing there, so that it cannot listen is no reason to end.
func serveStatus(ctx context.Context, socket string, roles []roleReport, log *zap.Logger) {
	listener, err := listenStatus(socket)
	if err != nil {
		log.Info("`mote status` will not show the state of parts", zap.Error(err))
		return
	}
	server := &http.Server{
		ReadTimeout:  statusTimeout,
		WriteTimeout: statusTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			out := make([]RoleStatus, len(roles))
			for i, r := range roles {
				out[i] = RoleStatus{Role: r.role, Parts: r.report()}
				if r.health != nil {
					health := r.health()
					out[i].Node = &health
				}
			}
			w.Header().Set("Content-Type", "application/json")
			// A reader that is gone has no use for an error.
			_ = json.NewEncoder(w).Encode(out)
		}),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Info("`mote status` does not show the state of parts any more", zap.Error(err))
	}
	<-ended
}

// listenStatus opens the socket, for its owner alone. A socket of a process that was killed is
// replaced: whoever calls this holds the data folder.
func listenStatus(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier mote: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// readStatus asks the mote that listens on a socket.
func readStatus(ctx context.Context, socket string) ([]RoleStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://mote/", nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("read the state of parts: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	var out []RoleStatus
	if err := json.NewDecoder(response.Body).Decode(&out); err != nil {
		return nil, fmt.Errorf("read the state of parts: %w", err)
	}
	return out, nil
}

// printParts prints how many parts of a role are in which state, and each that does not just work.
func (p program) printParts(role RoleStatus) {
	count := map[part.State]int{}
	var states []part.State
	for _, s := range role.Parts {
		if count[s.State]++; count[s.State] == 1 {
			states = append(states, s.State)
		}
	}
	slices.SortStableFunc(states, func(a, b part.State) int { return count[b] - count[a] })
	summary := make([]string, len(states))
	for i, s := range states {
		summary[i] = fmt.Sprintf("%d %s", count[s], s)
	}
	fmt.Fprintf(p.stdout, "  %-10s  %s\n", role.Role, strings.Join(summary, ", "))
	for _, s := range role.Parts {
		if s.State == part.Ready && s.Detail == "" {
			continue
		}
		detail := s.Detail
		if s.State == part.Waiting && detail != "" {
			detail = "for " + detail
		}
		fmt.Fprintln(p.stdout, strings.TrimRight(fmt.Sprintf("    %-18s %s %s", s.Name, s.State, detail), " "))
	}
}
