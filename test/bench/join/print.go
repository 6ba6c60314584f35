package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func printJoin(w io.Writer, s settings, joined nodesState, cpu time.Duration, before, after counters) {
	n := float64(s.nodes)
	fmt.Fprintf(w, "\n%d nodes joined in %.1f s, %d at once\n", s.nodes, joined.Seconds, s.atOnce)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "one node\tmedian s\tp99 s\tlongest s\t")
	fmt.Fprintf(t, "to its certificate\t%.2f\t%.2f\t%.2f\t\n", joined.Handshake.P50, joined.Handshake.P99,
		joined.Handshake.Max)
	fmt.Fprintf(t, "to Ready, knowing the cluster\t%.2f\t%.2f\t%.2f\t\n", joined.Join.P50, joined.Join.P99,
		joined.Join.Max)
	t.Flush()
	fmt.Fprintf(w, "a node cost the server %.0f ms of CPU, %.1f revisions of the store, %.1f commits\n",
		1000*cpu.Seconds()/n, (after[revision]-before[revision])/n, (after[commits]-before[commits])/n)
}

// printCost writes what the nodes cost beyond a server alone.
func printCost(w io.Writer, s settings, alone, together look, joined nodesState) {
	n := float64(s.nodes)
	a, b := alone.Parts[0], together.Parts[0]
	nodes := together.Parts[1]
	fmt.Fprintf(w, "\nserver, without nodes and with %d that only keep their heartbeats:\n", s.nodes)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "what\twithout\twith %d\ta node\t\n", s.nodes)
	row := func(what string, x, y float64) { fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.3f\t\n", what, x, y, (y-x)/n) }
	row("anonymous memory, MB", a.Memory.Anonymous, b.Memory.Anonymous)
	row("its heap in use, MB", alone.after[heap]/1e6, together.after[heap]/1e6)
	row("its stacks, MB", alone.after[stacks]/1e6, together.after[stacks]/1e6)
	row("CPU, % of a core", a.CPU, b.CPU)
	row("written, bytes/s", a.Written, b.Written)
	row("revisions/s", alone.perSecond(revision), together.perSecond(revision))
	row("commits/s", alone.perSecond(commits), together.perSecond(commits))
	row("requests/s", alone.perSecond(requests), together.perSecond(requests))
	row("answers, bytes/s", alone.perSecond(responses), together.perSecond(responses))
	row("watch events, bytes/s", alone.perSecond(events), together.perSecond(events))
	row("watches of the store", alone.after[watches], together.after[watches])
	row("goroutines", alone.after[goroutines], together.after[goroutines])
	t.Flush()
	fmt.Fprintf(w, "CPU of 100 nodes: %.2f %% of a core\n", (b.CPU-a.CPU)/n*100)
	fmt.Fprintf(w,
		"the hollow nodes themselves, each: %.2f MB anonymous memory, %.3f %% of a core, %.0f bytes/s written, %.0f "+
			"goroutines; %d missed heartbeats\n",
		nodes.Memory.Anonymous/n, nodes.CPU/n, nodes.Written/n, float64(joined.Goroutines)/n, joined.Missed)
}

// printRequests writes what the server was asked most.
func printRequests(w io.Writer, l look) {
	type row struct {
		what                string
		requests, responses float64
	}
	var rows []row
	for name := range l.after {
		if what, ok := strings.CutPrefix(name, requests+" "); ok {
			rows = append(rows, row{what, l.perSecond(name), l.perSecond(responses + " " + what)})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(b.requests, a.requests) })
	fmt.Fprintln(w, "\nmost of the requests:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "what\trequests/s\tanswers bytes/s\t")
	for _, r := range rows[:min(len(rows), 10)] {
		fmt.Fprintf(t, "%s\t%.2f\t%.0f\t\n", strings.TrimSpace(r.what), r.requests, r.responses)
	}
	t.Flush()
}
