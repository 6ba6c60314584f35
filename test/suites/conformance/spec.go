package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// spec is one test of the suite.
type spec struct {
	name   string // all its texts, joined the way the suite's own filter sees them
	sig    string // who is responsible for it, such as apps
	serial bool   // must run alone
	slow   bool   // announces to take more than two minutes
}

// report is the part that is read here of the JSON document a suite writes.
type report struct {
	SuiteSucceeded             bool
	SpecialSuiteFailureReasons []string
	SpecReports                []specReport
}

type specReport struct {
	ContainerHierarchyTexts  []string
	ContainerHierarchyLabels [][]string
	LeafNodeType             string
	LeafNodeText             string
	LeafNodeLabels           []string
	State                    string
	RunTime                  int64 // nanoseconds
	Failure                  struct{ Message string }
}

func (r specReport) name() string {
	return strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " ")
}

func (r specReport) labels() []string {
	return append(slices.Concat(r.ContainerHierarchyLabels...), r.LeafNodeLabels...)
}

func readReport(file string) (report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return report{}, fmt.Errorf("read the suite's report: %w", err)
	}
	var list []report
	if err := json.Unmarshal(data, &list); err != nil {
		return report{}, fmt.Errorf("decode the suite's report: %w", err)
	}
	if len(list) != 1 {
		return report{}, fmt.Errorf("decode the suite's report: %d suites in %s, want one", len(list), file)
	}
	return list[0], nil
}

// selection says which of the suite's tests are meant.
type selection struct {
	labels string // an expression of the suite's own
	skip   string // regular expression of names that are left out
}

var conformanceTests = selection{labels: "Conformance"}

// beyondTests are those of features that are on everywhere, which are neither slow nor disturb
// others, and need no cloud, no NFS of the kernel, and no image that cannot be made here: the CSI
// drivers of the suite, also the mocked ones, and its driver of devices (DRA) need a
// hostpathplugin, the former also a csi-node-driver-registrar, whose sources are no Go modules to
// be had.
var beyondTests = selection{
	labels: "!Conformance && !Slow && !Disruptive && !Flaky && !Serial && Feature: isEmpty && " +
		"(sig-network || sig-node || sig-storage || sig-cli || sig-api-machinery)",
	skip: `\[Provider:|\[Driver: (csi|nfs)|CSI Mock|MutableCSINode|\[sig-node\] \[DRA\]|NFS|kubelet host cleanup`,
}

// listSpecs asks the suite for its tests.
func listSpecs(ctx context.Context, suite string, which selection) ([]spec, error) {
	dir := sandbox.Dir()
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "conformance-"); err != nil {
			return nil, fmt.Errorf("make folder for the suite's report: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	file := filepath.Join(dir, "specs.json")
	args := []string{"--ginkgo.dry-run", "--ginkgo.silence-skips", "--ginkgo.label-filter=" + which.labels,
		"--ginkgo.json-report=" + file}
	if which.skip != "" {
		args = append(args, "--ginkgo.skip="+which.skip)
	}
	cmd := exec.CommandContext(ctx, suite, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("list the suite's tests: %w: %s", err, lastLines(string(out), 5))
	}
	rep, err := readReport(file)
	if err != nil {
		return nil, err
	}
	var all []spec
	for _, r := range rep.SpecReports {
		if r.LeafNodeType != "It" || r.State != "passed" {
			continue
		}
		labels := r.labels()
		all = append(all, spec{
			name:   r.name(),
			sig:    sigOf(r.name()),
			serial: slices.Contains(labels, "Serial"),
			slow:   slices.Contains(labels, "Slow"),
		})
	}
	slices.SortFunc(all, func(a, b spec) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

var sigPattern = regexp.MustCompile(`\[sig-([a-z-]+)\]`)

func sigOf(name string) string {
	if m := sigPattern.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return "none"
}

// readNames reads a list of names; empty lines and those that begin with # do not count.
func readNames(file string) (map[string]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read list of tests: %w", err)
	}
	defer f.Close()
	names := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
			names[line] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read list of tests: %w", err)
	}
	return names, nil
}

func lastLines(text string, n int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}
