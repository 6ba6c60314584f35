//go:build linux

package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Absolute makes paths hold in every folder. An empty one, which was not given, stays so.
func Absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("make path absolute: %w", err)
		}
		*p = abs
	}
	return nil
}

// RunCommand is Run for a command that is no test: its context ends with the first SIGINT or
// SIGTERM, and what it returns is told under the command's name.
func RunCommand(name string, command func(context.Context) error) int {
	return Run(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := command(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return 1
		}
		return 0
	})
}
