package cmd

import (
	"encoding/json"
	"fmt"
	"reflect"
	goruntime "runtime"
	"runtime/debug"

	"github.com/mattn/go-sqlite3"
	"github.com/urfave/cli/v2"
	"k8s.io/component-base/version"

	"github.com/mote-dev/mote/internal/datadir"
)

// Version is mote's own version, set when it is linked.
var Version = "dev"

// Versions are those of mote and of what is linked into it.
type Versions struct {
	Mote       string `json:"mote"`
	Kubernetes string `json:"kubernetes"`
	Containerd string `json:"containerd"`
	SQLite     string `json:"sqlite"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func versions() Versions {
	sqlite, _, _ := sqlite3.Version()
	v := Versions{
		Mote:       Version,
		Kubernetes: version.Get().GitVersion,
		SQLite:     "v" + sqlite,
		Go:         goruntime.Version(),
		Platform:   goruntime.GOOS + "/" + goruntime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, dep := range info.Deps {
		switch dep.Path {
		case "github.com/containerd/containerd/v2":
			v.Containerd = dep.Version
		case "k8s.io/kubernetes":
			// A plain `go build` sets no version at link time.
			if v.Kubernetes == "" || v.Kubernetes == "v0.0.0-master+$Format:%H$" {
				v.Kubernetes = dep.Version
			}
		}
	}
	return v
}

// dataVersions are what a data folder records.
func dataVersions() datadir.Versions {
	v := versions()
	return datadir.Versions{Mote: v.Mote, Kubernetes: v.Kubernetes}
}

func (p program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the versions of mote and its components",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v := versions()
			return p.print(c, v, func() {
				fmt.Fprintf(p.stdout, "mote %s\nKubernetes %s\ncontainerd %s\nSQLite %s\nGo %s %s\n", v.Mote,
					v.Kubernetes, v.Containerd, v.SQLite, v.Go, v.Platform)
			})
		},
	}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "output",
		Aliases: []string{"o"},
		Usage:   "`FORMAT` of the output: text or json",
		Value:   "text",
	}
}

// print writes v as JSON when asked for, else calls text.
func (p program) print(c *cli.Context, v any, text func()) error {
	switch form := c.String("output"); form {
	case "text", "":
		text()
		return nil
	case "json":
		if list := reflect.ValueOf(v); list.Kind() == reflect.Slice && list.IsNil() {
			// None is an empty list to a program, not null.
			v = []any{}
		}
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		return nil
	default:
		return fmt.Errorf("output form %q is unknown: use text or json", form)
	}
}
