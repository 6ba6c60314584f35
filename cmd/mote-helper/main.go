package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // log-in methods a kubeconfig may name
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	args := os.Args
	// Called by its own name, the tool's name is the first argument.
	if name := filepath.Base(args[0]); name != "kubectl" && name != "ctr" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: mote-helper kubectl|ctr ARGUMENT…")
		os.Exit(1)
	}
	// Both tools read os.Args, not only what they are given.
	os.Args = args
	switch filepath.Base(args[0]) {
	case "kubectl":
		kubectl()
	case "ctr":
		ctr()
	default:
		fmt.Fprintf(os.Stderr, "mote-helper: unknown tool %q: it is kubectl or ctr\n", args[0])
		os.Exit(1)
	}
}

// kubectl ends the process with kubectl's own exit code.
func kubectl() {
	// Verbosity counts from the start, before the command parses its flags.
	if _, err := logs.GlogSetter(cmd.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "kubectl:", err)
		os.Exit(1)
	}
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

func ctr() {
	if err := app.New().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr:", err)
		os.Exit(1)
	}
}
