package part

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Part is one row of a role's table. R is the role: what its parts share.
type Part[R any] struct {
	// Name is what logs, errors, `mote status`, --disable and the documentation call the part:
	// lower-case words joined by dashes.
	Name string
	// Purpose says in a few words what the part does.
	Purpose string
	// Needs names parts above this one in the table. This part is made once they are ready, and
	// they run until it has ended. A part that is disabled counts as ready.
	Needs []string
	// Leader is the name of the Lease whose holder alone does this part's work when there are
	// several servers. Empty means that every process of the role does it.
	Leader string
	// Optional parts can be disabled by name.
	Optional bool
	// New makes the part. ctx ends when the role stops. lead is nil unless Leader is set and there
	// can be other servers. A nil New means that the part is a feature of the one it needs last,
	// which asks the role whether it is disabled.
	New func(ctx context.Context, role R, lead Lead) (Running, error)
}

// Running is a part that was made.
type Running struct {
	// Run blocks until ctx ends and the part has stopped. An error, or a return before that, ends
	// the whole role. Nil means that making the part was all there is to do.
	Run func(ctx context.Context) error
	// Ready is closed when the parts that need this one may start. Nil means at once.
	Ready <-chan struct{}
	// Idle says why there is nothing to run here; empty if there is.
	Idle string
	// Note says, each time it is called, what the part cannot do although it works; empty if there
	// is nothing. Nil means that there never is.
	Note func() string
	// Durable makes an error of Run count that comes after the role was asked to stop. Other parts'
	// errors of that time are only logged: they mostly say that the context ended.
	Durable bool
}

// Lead calls work while this process is the one that shall do it, and returns what work returned or
// why the lead ended.
type Lead func(ctx context.Context, work func(context.Context) error) error

// State is what a part is doing.
type State string

// The states of a part, in the order they come in.
const (
	// Disabled parts never start.
	Disabled State = "disabled"
	// Waiting parts need another one that is not ready.
	Waiting State = "waiting"
	// Starting parts have been made or are being made, and are not ready.
	Starting State = "starting"
	// Idle parts have nothing to do here.
	Idle State = "idle"
	// Standby parts leave their work to another server.
	Standby State = "standby"
	// Ready parts work.
	Ready State = "ready"
	// Stopping parts were asked to stop.
	Stopping State = "stopping"
	// Stopped parts have ended as they were asked to.
	Stopped State = "stopped"
	// Failed parts ended with an error.
	Failed State = "failed"
)

// Status is the state of one part.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Detail says what the part waits for, why it is idle, what it cannot do, or its error. It may
	// be empty.
	Detail string `json:"detail,omitempty"`
}

// Optional lists the parts of a table that can be disabled, in alphabetical order.
func Optional[R any](table []Part[R]) []string {
	var names []string
	for _, p := range table {
		if p.Optional {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Markdown writes a table of parts for the documentation.
func Markdown[R any](table []Part[R]) string {
	var out strings.Builder
	out.WriteString("| part | does | needs | runs on | `--disable` |\n|---|---|---|---|---|\n")
	for _, p := range table {
		on, optional := "every one", ""
		if p.Leader != "" {
			on = "the leader"
		}
		if p.Optional {
			optional = "yes"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s |\n", p.Name, p.Purpose, strings.Join(p.Needs, ", "), on,
			optional)
	}
	return out.String()
}

// check refuses a table that cannot be started.
func check[R any](table []Part[R]) error {
	var above []string
	for i, p := range table {
		if p.Name == "" || slices.Contains(above, p.Name) {
			return fmt.Errorf("part %d of the table: name %q is empty or taken", i, p.Name)
		}
		for _, need := range p.Needs {
			if !slices.Contains(above, need) {
				return fmt.Errorf("part %s needs %s, which does not stand above it", p.Name, need)
			}
		}
		if p.New == nil && len(p.Needs) == 0 {
			return fmt.Errorf("part %s is a feature of no other part", p.Name)
		}
		above = append(above, p.Name)
	}
	return nil
}
