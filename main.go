// Command mote is a whole Kubernetes in one executable: a server, an agent and the tools around
// them.
package main

import (
	"os"

	"github.com/mote-dev/mote/cmd"
	"github.com/mote-dev/mote/cmd/stopsignal"
)

func main() {
	ctx, stop := stopsignal.Context()
	code := cmd.Main(ctx, os.Args)
	stop()
	os.Exit(code)
}
