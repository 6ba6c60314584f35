package measure

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// State is a cluster that has nothing to do, watched for a while.
type State struct {
	Parts []PartFigures
	span  time.Duration
	// others are shims and the pods themselves.
	others    float64
	processes int
}

// PartFigures are what one process needs when idle.
type PartFigures struct {
	Name    string
	Memory  Memory
	CPU     float64 // percent of a core
	Written float64 // bytes a second
}

// Sum adds the parts up.
func (st State) Sum() PartFigures {
	all := PartFigures{Name: "together"}
	for _, p := range st.Parts {
		all.Memory = all.Memory.plus(p.Memory)
		all.CPU += p.CPU
		all.Written += p.Written
	}
	return all
}

// Watch looks at what the parts use over a span.
func (c *Cluster) Watch(ctx context.Context, span time.Duration) (State, error) {
	st := State{span: span}
	type used struct {
		cpu     time.Duration
		written float64
	}
	look := func() ([]used, error) {
		var all []used
		for _, p := range c.parts {
			cpu, err := cpuTime(p.cmd.Process.Pid)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			written, err := writtenBytes(p.cmd.Process.Pid)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			all = append(all, used{cpu, written})
		}
		return all, nil
	}
	before, err := look()
	if err != nil {
		return State{}, err
	}
	begin := time.Now()
	if err := Pause(ctx, span); err != nil {
		return State{}, err
	}
	after, err := look()
	if err != nil {
		return State{}, err
	}
	seconds := time.Since(begin).Seconds()
	measured := map[int]bool{}
	for i, p := range c.parts {
		m, err := MemoryOf(p.cmd.Process.Pid)
		if err != nil {
			return State{}, fmt.Errorf("%s: %w", p.name, err)
		}
		measured[p.cmd.Process.Pid] = true
		st.Parts = append(st.Parts, PartFigures{
			Name:    p.name,
			Memory:  m,
			CPU:     100 * (after[i].cpu - before[i].cpu).Seconds() / seconds,
			Written: (after[i].written - before[i].written) / seconds,
		})
	}
	st.others, st.processes = othersMemory(measured)
	return st, c.ended()
}

func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Print writes a table of the parts.
func (st State) Print(w io.Writer, what string) {
	fmt.Fprintf(w, "\n%s, watched for %v\n", what, st.span)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "part\tanonymous MB\tfile-backed MB\tPSS MB\tthreads\tCPU %\twritten B/s\t")
	parts := st.Parts
	if len(parts) > 1 {
		parts = append(parts[:len(parts):len(parts)], st.Sum())
	}
	for _, p := range parts {
		fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%d\t%.2f\t%.0f\t\n", p.Name, p.Memory.Anonymous, p.Memory.File,
			p.Memory.PSS, p.Memory.Threads, p.CPU, p.Written)
	}
	t.Flush()
	if st.processes > 0 {
		fmt.Fprintf(w, "beside it %d processes of pods and their shims, PSS %.1f MB\n", st.processes, st.others)
	}
}
