// Command mote is a whole Kubernetes in one executable: a server, an agent and the tools around
// them.
package main

import (
	"os"

	"github.com/mote-dev/mote/cmd"
)

func main() {
	os.Exit(cmd.Main(os.Args))
}
