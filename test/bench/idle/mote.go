package main

import (
	"context"

	"github.com/mote-dev/mote/test/bench/measure"
)

// newMote returns mote, not started, and its data folder, whose tools are used by the upstream
// parts afterwards.
func newMote(s settings) (subject, string) {
	m := measure.NewMote(s.Settings, "mote")
	return subject{
		Cluster:     m.Cluster,
		executables: []string{s.Mote},
		start:       func(ctx context.Context) error { return m.StartServer(ctx, "--node-name", nodeName) },
		load: func(ctx context.Context, archive string) error {
			_, err := m.Command(ctx, "image", "import", "--data-dir", m.Data, archive)
			return err
		},
	}, m.Data
}
