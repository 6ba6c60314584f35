package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/mote-dev/mote/test/bench/measure"
)

// figures are all that is measured of a cluster.
type figures struct {
	name        string
	executables float64 // megabytes
	api, node   time.Duration
	pods        time.Duration // zero if none were run
	states      []idleState
}

// idleState is a cluster with so many pods that has nothing to do.
type idleState struct {
	pods int
	measure.State
}

// compare writes the table with ratios.
func compare(w io.Writer, ours, theirs figures) {
	fmt.Fprintf(w, "\nof one run, %s first, then %s:\n", ours.name, theirs.name)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "what\t%s\t%s\t%s/%s\t\n", ours.name, theirs.name, ours.name, theirs.name)
	row := func(what, unit string, a, b float64) {
		ratio, digits := "-", 1
		if b > 0 {
			ratio = fmt.Sprintf("%.2f", a/b)
		}
		if b < 10 {
			digits = 2
		}
		fmt.Fprintf(t, "%s, %s\t%.*f\t%.*f\t%s\t\n", what, unit, digits, a, digits, b, ratio)
	}
	row("executables", "MB", ours.executables, theirs.executables)
	row("start to API ready", "s", ours.api.Seconds(), theirs.api.Seconds())
	row("start to node Ready", "s", ours.node.Seconds(), theirs.node.Seconds())
	if ours.pods > 0 {
		row(fmt.Sprintf("%d pods Ready after apply", ours.states[len(ours.states)-1].pods), "s", ours.pods.Seconds(),
			theirs.pods.Seconds())
	}
	for i := range ours.states {
		with := fmt.Sprintf(", %d pods", ours.states[i].pods)
		a, b := ours.states[i].Sum(), theirs.states[i].Sum()
		row("anonymous memory"+with, "MB", a.Memory.Anonymous, b.Memory.Anonymous)
		row("file-backed memory"+with, "MB", a.Memory.File, b.Memory.File)
		row("PSS"+with, "MB", a.Memory.PSS, b.Memory.PSS)
		row("idle CPU"+with, "% of a core", a.CPU, b.CPU)
		row("written"+with, "bytes/s", a.Written, b.Written)
	}
	// Its pages are in mote's figures, and nothing of the kind is in the others'.
	fmt.Fprintf(t, "DNS of the cluster (CoreDNS)\tin it\tnone runs\t-\t\n")
	t.Flush()
}
