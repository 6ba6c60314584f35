package main

import (
	"context"
	"flag"
	"os"

	"github.com/mote-dev/mote/test/bench/measure"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

type settings struct {
	measure.Settings
	images   string
	upstream string
	pods     int
}

func main() {
	var s settings
	s.Register("idle")
	flag.StringVar(&s.images, "images", "bin/images", "folder with busybox.tar, for -pods")
	flag.StringVar(&s.upstream, "upstream", "",
		"folder with the upstream programs, to measure them as well; empty leaves them out")
	flag.IntVar(&s.pods, "pods", 0, "measure once more with so many one-container pods")
	os.Exit(s.Main(func(ctx context.Context) error { return run(ctx, s) }, &s.images, &s.upstream))
}

func run(ctx context.Context, s settings) error {
	at, err := sandbox.Take()
	if err != nil {
		return err
	}
	mote, data := newMote(s)
	ours, err := mote.measured(ctx, s)
	if err != nil || s.upstream == "" {
		return err
	}
	// The pods, their networks and the rules for them outlive mote.
	if err := sandbox.PowerCut(at); err != nil {
		return err
	}
	u, err := newUpstream(s, data)
	if err != nil {
		return err
	}
	theirs, err := u.measured(ctx, s)
	if err != nil {
		return err
	}
	compare(os.Stdout, ours, theirs)
	return nil
}
