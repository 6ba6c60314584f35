package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/http2"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/joinapi"
)

// ErrNoTunnel means that a node which is reached through a tunnel has none.
var ErrNoTunnel = errors.New("the node has no tunnel to this server")

// Config is what a [Server] needs. No field may be zero unless it says so.
type Config struct {
	// Nodes is the informer of the cluster's nodes; its owner runs it.
	Nodes cache.SharedIndexInformer
	// ClusterCIDRs are the ranges of pods: nothing outside is reached through a tunnel on the word
	// of a node. None means that nodes are believed.
	ClusterCIDRs []netip.Prefix
	// Local is the node in this process, for which no dial waits.
	Local string
	// PingAfter is how long a tunnel may be idle before a ping, PingTimeout how long the reply may
	// take. Zero means 15 and 10 seconds.
	PingAfter, PingTimeout time.Duration
	// Wait is how long a dial waits for a node's tunnel before it tries the node directly. Zero
	// means 5 seconds.
	Wait time.Duration
	// Metrics receives the package's metrics; nil means they are not registered.
	Metrics prometheus.Registerer
	// Logger may be nil for no logging.
	Logger *zap.Logger
}

const (
	// dialTimeout bounds a dial through a tunnel, the wait for the tunnel included.
	dialTimeout = 15 * time.Second
	// lingerTimeout bounds how long a closed stream may take to send its remaining data.
	lingerTimeout = 30 * time.Second
)

// Server is the server's end of all tunnels. Make it with [New].
type Server struct {
	config Config
	log    *zap.Logger
	// name identifies this process, so that a node recognises it under every address.
	name      string
	nodes     *nodes
	transport *http2.Transport
	direct    net.Dialer
	counters  counters

	mu       sync.Mutex            // guards what follows; taken before that of nodes
	sessions map[string][]*session // by node; new streams use the last one
	running  bool
	changed  chan struct{}   // closed when a session is added
	plain    map[string]bool // nodes that the last dial reached without a tunnel
	work     sync.WaitGroup  // what Run waits for at its end
}

// New returns a server without tunnels; nodes are refused until Run runs.
func New(c Config) (*Server, error) {
	if c.Nodes == nil {
		return nil, errors.New("tunnel: the informer of nodes is needed")
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	for _, d := range []struct {
		of   *time.Duration
		zero time.Duration
	}{{&c.PingAfter, 15 * time.Second}, {&c.PingTimeout, 10 * time.Second}, {&c.Wait, 5 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.zero
		}
	}
	transport, err := newTransport(c)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config:    c,
		log:       c.Logger,
		name:      rand.Text(),
		transport: transport,
		counters:  newCounters(),
		direct:    net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second},
		sessions:  map[string][]*session{},
		changed:   make(chan struct{}),
		plain:     map[string]bool{},
	}
	s.nodes = newNodes(s.forget)
	s.nodes.within = c.ClusterCIDRs
	if c.Metrics != nil {
		if err := s.counters.register(c.Metrics); err != nil {
			return nil, err
		}
	}
	if _, err := c.Nodes.AddEventHandler(s.nodes); err != nil {
		return nil, fmt.Errorf("watch nodes for tunnels: %w", err)
	}
	return s, nil
}

// Run accepts tunnels until ctx ends, then closes all of them and waits.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.running = false
	var all []*session
	for _, of := range s.sessions {
		all = append(all, of...)
	}
	s.mu.Unlock()
	for _, each := range all {
		each.close()
	}
	s.work.Wait()
	return nil
}

// begin adds to what Run waits for; it reports false if Run is not running.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		s.work.Add(1)
	}
	return s.running
}

// ServeNode turns a node's request to joinapi.PathTunnel into a tunnel and returns when the tunnel
// has ended. The caller has authenticated the node.
func (s *Server) ServeNode(w http.ResponseWriter, r *http.Request, node string) {
	if r.Method != http.MethodGet || r.ProtoMajor != 1 ||
		!strings.EqualFold(r.Header.Get("Upgrade"), joinapi.TunnelProtocol) {
		w.Header().Set("Upgrade", joinapi.TunnelProtocol)
		refuse(w, http.StatusUpgradeRequired, joinapi.CodeBadRequest,
			"a tunnel is asked for by HTTP/1.1 GET with Upgrade: "+joinapi.TunnelProtocol)
		return
	}
	if !s.begin() {
		refuse(w, http.StatusServiceUnavailable, joinapi.CodeNotReady, "the server is starting or stopping: try again")
		return
	}
	defer s.work.Done()
	have := strings.Split(r.Header.Get(joinapi.HeaderTunnelHave), ",")
	if slices.Contains(have, s.name) && s.session(node) != nil {
		w.Header().Set(joinapi.HeaderTunnelServer, s.name)
		refuse(w, http.StatusConflict, joinapi.CodeTunnelOpen, "the node has a tunnel to this server already")
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		// A handler in front keeps the connection, which trying again does not change.
		s.log.Warn("could not turn a connection into a tunnel", zap.String("node", node), zap.Error(err))
		refuse(w, http.StatusInternalServerError, joinapi.CodeInternal,
			"this connection cannot become a tunnel; the server's log says why")
		return
	}
	if buffered.Reader.Buffered() > 0 {
		// In the tunnel's protocol the server speaks first, so the client is no node.
		_ = conn.Close()
		return
	}
	_, err = fmt.Fprintf(conn,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n",
		joinapi.TunnelProtocol, joinapi.HeaderTunnelServer, s.name)
	if err != nil {
		_ = conn.Close()
		return
	}
	n, err := s.open(conn, node)
	if err != nil {
		s.log.Debug("tunnel did not open", zap.String("node", node), zap.Error(err))
		return
	}
	<-n.conn.ended
	s.remove(n)
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, code joinapi.Code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client being gone is all that can go wrong.
	_ = json.NewEncoder(w).Encode(&joinapi.Error{Code: code, Message: message, ServerTime: time.Now().UTC()})
}

// session returns the session that new streams to a node use, or nil.
func (s *Server) session(node string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessionLocked(node)
}

// sessionLocked is session for callers that hold mu.
func (s *Server) sessionLocked(node string) *session {
	of := s.sessions[node]
	if len(of) == 0 || of[len(of)-1].over() {
		return nil
	}
	return of[len(of)-1]
}

// add makes n its node's session and retires the one before, which ends once its streams have.
func (s *Server) add(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters.tunnels.Inc()
	of := slices.Clone(s.sessions[n.node])
	s.sessions[n.node] = append(of, n)
	delete(s.plain, n.node)
	close(s.changed)
	s.changed = make(chan struct{})
	if !s.running {
		n.close()
		return
	}
	for _, before := range of {
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			before.retire()
		}()
	}
}

func (s *Server) remove(n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters.tunnels.Dec()
	left := slices.DeleteFunc(s.sessions[n.node], func(other *session) bool { return other == n })
	if len(left) == 0 {
		delete(s.sessions, n.node)
		s.log.Debug("node has no tunnel any more", zap.String("node", n.node))
		return
	}
	s.sessions[n.node] = left
}

// Disconnect ends a node's tunnels and all streams in them.
func (s *Server) Disconnect(node string) {
	s.mu.Lock()
	of := slices.Clone(s.sessions[node])
	s.mu.Unlock()
	for _, n := range of {
		n.close()
	}
}

// HostOf returns an address that only this node has, or "" if there is none.
func (s *Server) HostOf(node string) string { return s.nodes.host(node) }

// DialContext connects to an address of the cluster. Pods, and a node's name or address with its
// kubelet's port, are reached through the node's tunnel.
func (s *Server) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := s.nodes.find(address)
	if err != nil {
		return nil, err
	}
	if to.target == "" {
		return s.direct.DialContext(ctx, network, to.address)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	n, waited := s.await(ctx, to.node)
	for n != nil {
		conn, err := n.dial(ctx, to.target)
		if err == nil || !n.over() || ctx.Err() != nil {
			return conn, err
		}
		// The tunnel ended during the dial; the node is likely to open another one soon.
		n, waited = s.await(ctx, to.node)
	}
	conn, err := s.direct.DialContext(ctx, network, to.address)
	if to.node == s.config.Local {
		return conn, err
	}
	s.setPlain(to.node, err == nil)
	if err != nil {
		return nil, fmt.Errorf(
			"%w: node %s, waited %s; and directly: %w: see that mote runs there and reaches this server", ErrNoTunnel,
			to.node, waited.Round(time.Second), err)
	}
	return conn, nil
}

// setPlain remembers whether a node was reached without a tunnel, as long as there is such a node.
func (s *Server) setPlain(node string, plain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if plain && s.nodes.has(node) {
		s.plain[node] = true
	} else {
		delete(s.plain, node)
	}
}

// forget drops what is remembered of a node that was deleted. Its tunnel ends by itself.
func (s *Server) forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.plain, node)
}

// await returns a node's session. It waits a short while for one if the node is expected to have
// one.
func (s *Server) await(ctx context.Context, node string) (*session, time.Duration) {
	start := time.Now()
	timer := time.NewTimer(s.config.Wait)
	defer timer.Stop()
	for {
		s.mu.Lock()
		n, changed, plain := s.sessionLocked(node), s.changed, s.plain[node]
		s.mu.Unlock()
		if n != nil || plain || node == s.config.Local {
			return n, time.Since(start)
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, time.Since(start)
		case <-ctx.Done():
			return nil, time.Since(start)
		}
	}
}
