package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// cutAfter is how long a spec that is running when the time is up may go on; then it is cut short.
const cutAfter = 3 * time.Minute

// runner runs specs, each in a process of its own, and keeps what came of them.
type runner struct {
	settings settings
	cluster  *cluster
	begin    time.Time

	mu    sync.Mutex // guards count and the results file
	count map[outcome]int
}

func (r *runner) done() int { return r.count[passed] + r.count[failed] + r.count[skipped] }

// run takes first those that may run side by side, then the serial ones.
func (r *runner) run(ctx context.Context, specs []spec) error {
	r.count = map[outcome]int{}
	together, alone := order(specs)
	if err := r.all(ctx, together, r.settings.workers); err != nil {
		return err
	}
	return r.all(ctx, alone, 1)
}

// order parts those that may run side by side from the serial ones. Slow ones begin early, so that
// the end is not spent waiting for one; but not first, as one of them waits for the second
// compaction of the store, which in a new cluster takes as long as it waits.
func order(specs []spec) (together, alone []spec) {
	var slow []spec
	for _, s := range specs {
		switch {
		case s.serial:
			alone = append(alone, s)
		case s.slow:
			slow = append(slow, s)
		default:
			together = append(together, s)
		}
	}
	return slices.Insert(together, len(together)/4, slow...), alone
}

func (r *runner) all(ctx context.Context, specs []spec, workers int) error {
	cut := ctx
	if r.settings.span > 0 {
		var cancel context.CancelFunc
		cut, cancel = context.WithDeadline(ctx, r.begin.Add(r.settings.span+cutAfter))
		defer cancel()
	}
	group, inner := errgroup.WithContext(cut)
	group.SetLimit(workers)
	for _, s := range specs {
		group.Go(func() error {
			if r.timeIsUp() || inner.Err() != nil {
				return nil
			}
			return r.one(inner, s)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (r *runner) timeIsUp() bool {
	return r.settings.span > 0 && time.Since(r.begin) > r.settings.span
}

func (r *runner) one(ctx context.Context, s spec) error {
	name := fileName(s.name)
	report := filepath.Join(sandbox.Dir(), name+".json")
	defer os.Remove(report)
	log := filepath.Join(r.settings.reports, name+".log")
	began := time.Now().UTC()
	out, err := r.suite(ctx, s, report)
	if ctx.Err() != nil {
		fmt.Printf("cut      %s\n", s.name)
		return nil
	}
	if err := r.cluster.ended(); err != nil {
		return fmt.Errorf("run %q: %w", s.name, err)
	}
	res, err := judge(s, report, err)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, lastLines(string(out), 20))
	}
	res.Mote, res.At = r.cluster.commit, began.Truncate(time.Second)

	if err := os.WriteFile(log, out, 0o644); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[res.Outcome]++
	fmt.Printf("%-8s %4.0f s  %s\n", res.Outcome, res.Seconds, s.name)
	return addResult(r.settings.results, res)
}

// suite runs one spec and returns what it printed. Interrupted, it is given time to delete what it
// made.
func (r *runner) suite(ctx context.Context, s spec, report string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.settings.suite,
		"--ginkgo.focus="+regexp.QuoteMeta(s.name)+"$", "--ginkgo.json-report="+report, "--ginkgo.silence-skips",
		"--ginkgo.no-color", "--ginkgo.v",
		"--provider=skeleton", "--kubeconfig="+r.cluster.kubeconfig, "--kubectl-path="+r.cluster.kubectl,
		"--kubelet-root-dir="+filepath.Join(r.cluster.dataDir, "agent/kubelet"), "--e2e-output-dir="+sandbox.Dir(),
		"--disable-log-dump")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Dir = sandbox.Dir()
	return cmd.CombinedOutput()
}

// judge reads what came of s. An error means that the suite said nothing of use.
func judge(s spec, file string, ended error) (result, error) {
	rep, err := readReport(file)
	if err != nil {
		return result{}, fmt.Errorf("run %q: %w", s.name, errors.Join(ended, err))
	}
	i := slices.IndexFunc(rep.SpecReports,
		func(r specReport) bool { return r.LeafNodeType == "It" && r.name() == s.name })
	if i < 0 {
		return result{}, fmt.Errorf("run %q: the suite's report does not name it", s.name)
	}
	found := rep.SpecReports[i]
	res := result{
		Spec:    s.name,
		Outcome: failed,
		Seconds: float64(found.RunTime/1e8) / 10,
		Reason:  brief(found.Failure.Message),
	}
	switch {
	case found.State == "passed" && rep.SuiteSucceeded:
		res.Outcome, res.Reason = passed, ""
	case found.State == "skipped" && rep.SuiteSucceeded:
		res.Outcome = skipped
	case !rep.SuiteSucceeded && res.Reason == "":
		res.Reason = brief(suiteFailure(rep))
	}
	return res, nil
}

// suiteFailure is what went wrong outside the spec, such as in the suite's preparation.
func suiteFailure(rep report) string {
	var said []string
	for _, r := range rep.SpecReports {
		if r.LeafNodeType != "It" && r.Failure.Message != "" {
			said = append(said, r.LeafNodeType+": "+r.Failure.Message)
		}
	}
	return strings.Join(append(said, rep.SpecialSuiteFailureReasons...), "; ")
}

// brief keeps a reason to what fits in a table.
func brief(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return text
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// fileName is short, readable and different for different names.
func fileName(name string) string {
	short := strings.Trim(notInNames.ReplaceAllString(name, "-"), "-")
	return fmt.Sprintf("%.90s-%x", short, sha256.Sum256([]byte(name)))[:min(len(short), 90)+9]
}
