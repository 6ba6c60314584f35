package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/kisielk/errcheck/errcheck"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
)

// unwanted are staticcheck's checks that do not fit, with the reason.
var unwanted = map[string]string{
	"SA1019": "deprecation is a fact about dependencies, which are not read",
	"SA5011": "that a call does not return is one, too; without it, code behind t.Fatal seems reachable",
}

func main() {
	errcheck.DefaultExcludedSymbols = append(errcheck.DefaultExcludedSymbols, harmless...)
	analyzers := []*analysis.Analyzer{excepted(errcheck.Analyzer), excepted(errorlint.NewAnalyzer()),
		excepted(misspelling)}
	analyzers = append(analyzers, checks(staticcheck.Analyzers)...)
	analyzers = append(analyzers, checks(simple.Analyzers)...)
	switch arg := os.Args[len(os.Args)-1]; {
	case arg == "-flags":
		fmt.Println("[]")
	case strings.HasPrefix(arg, "-V="):
		if err := printVersion(); err != nil {
			fail(err)
		}
	default:
		found, err := check(arg, analyzers)
		if err != nil {
			fail(err)
		}
		if found {
			os.Exit(2)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "lint:", err)
	os.Exit(1)
}

var exception = regexp.MustCompile(`//nolint:([a-z,]+) // \S`)

// excepted makes a linter keep quiet in lines with, or below, its name and a reason:
//
//	//nolint:errcheck // The connection is gone already.
func excepted(a *analysis.Analyzer) *analysis.Analyzer {
	name := a.Name
	if strings.HasPrefix(name, "SA") || strings.HasPrefix(name, "S1") {
		name = "staticcheck"
	}
	run := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		inner := *pass
		sources := map[string][]string{}
		inner.Report = func(d analysis.Diagnostic) {
			p := pass.Fset.Position(d.Pos)
			lines, ok := sources[p.Filename]
			if !ok {
				data, _ := pass.ReadFile(p.Filename)
				lines = strings.Split(string(data), "\n")
				sources[p.Filename] = lines
			}
			if p.Line > len(lines) {
				return // made by cgo
			}
			for l := max(1, p.Line-1); l <= p.Line; l++ {
				if m := exception.FindStringSubmatch(lines[l-1]); m != nil &&
					strings.Contains(","+m[1]+",", ","+name+",") {
					return
				}
			}
			if name == "errcheck" {
				line := lines[p.Line-1]
				if ignorable(line[:p.Column-1], line[p.Column-1:]) {
					return
				}
				d.Message += ": " + strings.TrimSpace(line)
			}
			d.Message += " (" + a.Name + ")"
			pass.Report(d)
		}
		return run(&inner)
	}
	return a
}

// harmless are calls whose errors errcheck need not see checked.
var harmless = []string{
	// Nobody is there to report to when a terminal or a client has gone.
	"fmt.Fprint", "fmt.Fprintf", "fmt.Fprintln", "(*text/tabwriter.Writer).Flush",
	// They fail for wrong arguments only.
	"os.Unsetenv", "(*math/rand/v2.ChaCha8).Read",
}

var (
	// closing is not checked: what is written goes through internal/atomicfile or a checked Sync or
	// Flush, and an error of closing what was only read changes nothing.
	closing = regexp.MustCompile(`\.([cC]lose|CloseIdleConnections)$`)
	// removing temporary files on the way out: what stays is removed at the next start.
	removing = regexp.MustCompile(`^\s*defer os\.Remove(All)?$`)
)

// ignorable looks at the line before and after the opening bracket of the call.
func ignorable(before, after string) bool {
	// A bare receive waits for an end; what needs the error receives it.
	return closing.MatchString(before) || removing.MatchString(before) || strings.HasPrefix(after, "<-")
}
