package part

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
)

// ErrEnded is the cause when a part returned that should have run until it was stopped.
var ErrEnded = errors.New("ended by itself")

// Options are what a Set needs to know beside its table.
type Options struct {
	// Disable names the parts that shall not run. Names that the table does not have are ignored:
	// they are other roles'.
	Disable []string
	// Lead returns how a part gets the lead of a lease; nil means that there is no other server.
	Lead func(lease string) Lead
	// Failed hears what Run will return as soon as a part failed, before the others have stopped.
	// Nil means that nobody asks.
	Failed func(error)
	// Logger receives what parts report while they stop. Nil means that nothing is kept.
	Logger *zap.Logger
}

// Set is the parts of one role in one process. It runs once.
type Set[R any] struct {
	role    R
	options Options
	nodes   []*node[R]

	once  sync.Once // guards cause and stop
	cause error
	stop  context.CancelFunc
}

// node is one part of a running set.
type node[R any] struct {
	part       Part[R]
	needs      []*node[R]
	dependents []*node[R]
	disabled   bool
	// ready is closed when dependents may start, done when the part has ended or never will run.
	ready, done chan struct{}

	mu     sync.Mutex // guards what follows
	state  State
	detail string
	note   func() string // asked while the part is ready; nil if it has none
}

// NewSet checks a table and returns its parts, none of which has been made.
func NewSet[R any](role R, table []Part[R], o Options) (*Set[R], error) {
	if err := check(table); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Set[R]{role: role, options: o}
	byName := map[string]*node[R]{}
	for _, p := range table {
		n := &node[R]{
			part:  p,
			ready: make(chan struct{}),
			done:  make(chan struct{}),
			state: Waiting,
		}
		if n.disabled = p.Optional && slices.Contains(o.Disable, p.Name); n.disabled {
			n.state = Disabled
			close(n.ready)
			close(n.done)
		}
		for _, name := range p.Needs {
			need := byName[name]
			n.needs = append(n.needs, need)
			need.dependents = append(need.dependents, n)
		}
		byName[p.Name] = n
		s.nodes = append(s.nodes, n)
	}
	return s, nil
}

// Run starts the parts and blocks until ctx ends or one of them fails, and all have stopped. It
// returns the first cause, which names its part, or nil when it was asked to stop.
func (s *Set[R]) Run(ctx context.Context) error {
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	var parts sync.WaitGroup
	for _, n := range s.nodes {
		if !n.disabled {
			parts.Go(func() { s.run(ctx, n) })
		}
	}
	parts.Wait()
	return s.cause
}

// Report returns the state of each part, in the table's order.
func (s *Set[R]) Report() []Status {
	out := make([]Status, len(s.nodes))
	for i, n := range s.nodes {
		n.mu.Lock()
		out[i] = Status{Name: n.part.Name, State: n.state, Detail: n.detail}
		note := n.note
		n.mu.Unlock()
		// Not under the lock: a part may read files for it.
		if note != nil && out[i].State == Ready && out[i].Detail == "" {
			out[i].Detail = note()
		}
	}
	return out
}

// run takes one part through its life. ctx ends when the set stops.
func (s *Set[R]) run(ctx context.Context, n *node[R]) {
	defer close(n.done)
	for _, need := range n.needs {
		n.set(Waiting, need.part.Name)
		select {
		case <-need.ready:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		n.set(Stopped, "")
		return
	}
	n.set(Starting, "")
	running := Running{}
	if n.part.New != nil {
		var err error
		if running, err = n.part.New(ctx, s.role, s.lead(n)); err != nil {
			s.ended(ctx, n, false, err)
			return
		}
	}
	// The part's own context ends after its dependents, not when they are told to end.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	returned := make(chan struct{})
	defer close(returned)
	helpers.Go(func() { n.becomeReady(running, returned) })
	helpers.Go(func() {
		select {
		case <-ctx.Done():
		case <-returned:
			return
		}
		for _, d := range n.dependents {
			<-d.done
		}
		n.set(Stopping, "")
		end()
	})
	if running.Run == nil {
		<-life.Done()
		n.set(Stopped, "")
		return
	}
	s.ended(ctx, n, running.Durable, running.Run(life))
}

// becomeReady lets the dependents start once the part is ready, unless it returns before.
func (n *node[R]) becomeReady(running Running, returned <-chan struct{}) {
	if running.Ready != nil {
		select {
		case <-running.Ready:
		case <-returned:
			return
		}
	}
	n.mu.Lock()
	switch {
	case running.Idle != "":
		n.state, n.detail = Idle, running.Idle
	case n.state == Starting:
		n.state = Ready
	}
	n.note = running.Note
	n.mu.Unlock()
	close(n.ready)
}

// ended records how a part ended: ctx tells whether it was asked to.
func (s *Set[R]) ended(ctx context.Context, n *node[R], durable bool, err error) {
	if ctx.Err() != nil && (err == nil || !durable) {
		if err != nil && !errors.Is(err, context.Canceled) {
			s.options.Logger.Info("a part reported an error while it stopped",
				zap.String("part", n.part.Name), zap.Error(err))
		}
		n.set(Stopped, "")
		return
	}
	if err == nil {
		err = ErrEnded
	}
	err = fmt.Errorf("%s: %w", strings.ReplaceAll(n.part.Name, "-", " "), err)
	n.set(Failed, err.Error())
	s.once.Do(func() {
		s.cause = err
		if s.options.Failed != nil {
			s.options.Failed(err)
		}
		s.stop()
	})
}

// lead returns how n gets its lead, with its state following it.
func (s *Set[R]) lead(n *node[R]) Lead {
	if n.part.Leader == "" || s.options.Lead == nil {
		return nil
	}
	lead := s.options.Lead(n.part.Leader)
	if lead == nil {
		return nil
	}
	return func(ctx context.Context, work func(context.Context) error) error {
		n.set(Standby, "")
		return lead(ctx, func(ctx context.Context) error {
			n.set(Ready, "leader")
			defer n.set(Standby, "")
			return work(ctx)
		})
	}
}

// set changes the state. One that has ended keeps the state it ended with.
func (n *node[R]) set(state State, detail string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == Failed || n.state == Stopped {
		return
	}
	if n.state == Stopping && state != Failed && state != Stopped {
		return
	}
	n.state, n.detail = state, detail
}
