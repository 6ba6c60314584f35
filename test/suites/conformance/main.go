package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

type settings struct {
	mote    string        // the executable to test
	suite   string        // e2e.test
	images  string        // folder of image archives
	results string        // file results are added to
	reports string        // folder for logs
	focus   string        // regular expression of names; with it specs that have results run again
	list    string        // file with the names to run, one a line; empty for all conformance tests
	failed  bool          // run again what failed last time, and nothing else
	beyond  bool          // run tests that are not for conformance
	rounds  int           // run what has not had the same outcome so many times in a row
	workers int           // how many of those run at a time that allow it
	span    time.Duration // no spec is begun after it; 0 for no limit
	args    string        // more arguments for mote server
	nodes   int           // how many; one of them is the server's
}

func main() {
	s := settings{}
	var table string
	flag.StringVar(&s.mote, "mote", "bin/mote", "the executable to test")
	flag.StringVar(&s.suite, "suite", "build/conformance/e2e.test", "the suite's executable")
	flag.StringVar(&s.images, "images", "bin/images/conformance", "folder with the suite's images")
	flag.StringVar(&s.results, "results", "test/suites/conformance/results/one-node.jsonl",
		"file that results are added to")
	flag.StringVar(&s.reports, "reports", "bin/reports/conformance", "folder for the logs of tests and server")
	flag.StringVar(&s.focus, "focus", "",
		"regular expression; run the tests whose names match, also those that have a result")
	flag.StringVar(&s.list, "list", "",
		"file with names of tests, one a line; run these, also those that have a result")
	flag.BoolVar(&s.failed, "failed", false, "run those that failed last time")
	flag.BoolVar(&s.beyond, "beyond", false,
		"run tests beyond those for conformance, of features that are on everywhere")
	flag.IntVar(&s.rounds, "rounds", 1, "run each test until its last so many results agree")
	flag.IntVar(&s.workers, "workers", 4, "how many tests run at a time")
	flag.DurationVar(&s.span, "for", 0, "begin no further test after this time; 0 for no limit")
	flag.StringVar(&s.args, "args", "", "more arguments for mote server, separated by spaces")
	flag.IntVar(&s.nodes, "nodes", 1, "how many nodes; with more than one each has a host of its own")
	flag.StringVar(&table, "table", "", "run nothing; write the table of all results beside -results to this file")
	flag.Parse()
	if s.nodes < 1 || s.nodes > 9 {
		fail(fmt.Errorf("%d nodes: give a number from 1 to 9", s.nodes))
	}
	if err := sandbox.Absolute(&s.mote, &s.suite, &s.images, &s.results, &s.reports, &s.list, &table); err != nil {
		fail(err)
	}
	if table != "" {
		if err := writeTable(context.Background(), s, table); err != nil {
			fail(err)
		}
		return
	}
	os.Exit(sandbox.RunCommand("conformance", func(ctx context.Context) error { return conform(ctx, s) }))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "conformance:", err)
	os.Exit(1)
}

// conform runs what the settings pick and returns an error if anything of it did not pass.
func conform(ctx context.Context, s settings) error {
	which := conformanceTests
	if s.beyond {
		which = beyondTests
	}
	all, err := listSpecs(ctx, s.suite, which)
	if err != nil {
		return err
	}
	past, err := readResults(s.results)
	if err != nil {
		return err
	}
	picked, err := pick(all, past, s)
	if err != nil {
		return err
	}
	fmt.Printf("conformance: %d of %d tests to run\n", len(picked), len(all))
	if len(picked) == 0 {
		return nil
	}
	begin := time.Now()
	c, err := startCluster(ctx, s)
	if err != nil {
		return err
	}
	defer c.stop()
	fmt.Printf("conformance: cluster ready with the suite's images after %v\n", time.Since(begin).Round(time.Second))

	r := runner{settings: s, cluster: c, begin: begin}
	if err := r.run(ctx, picked); err != nil {
		return err
	}
	fmt.Printf("conformance: %d passed, %d failed, %d skipped, %d left, in %v\n",
		r.count[passed], r.count[failed], r.count[skipped], len(picked)-r.done(), time.Since(begin).Round(time.Second))
	if r.count[failed] > 0 {
		return fmt.Errorf("%d tests failed; logs are in %s", r.count[failed], s.reports)
	}
	return nil
}

// pick chooses specs: those asked for by name, by expression or for having failed; otherwise those
// without enough results.
func pick(all []spec, past []result, s settings) ([]spec, error) {
	last, agree := newest(past)
	wanted := func(sp spec) bool { return agree[sp.name] < s.rounds }
	switch {
	case s.focus != "":
		re, err := regexp.Compile(s.focus)
		if err != nil {
			return nil, fmt.Errorf("read focus: %w", err)
		}
		wanted = func(sp spec) bool { return re.MatchString(sp.name) }
	case s.list != "":
		names, err := readNames(s.list)
		if err != nil {
			return nil, err
		}
		if err := known(names, all); err != nil {
			return nil, fmt.Errorf("%s: %w", s.list, err)
		}
		wanted = func(sp spec) bool { return names[sp.name] }
	case s.failed:
		wanted = func(sp spec) bool { return last[sp.name].Outcome == failed }
	}
	var picked []spec
	for _, sp := range all {
		if wanted(sp) {
			picked = append(picked, sp)
		}
	}
	return picked, nil
}

// known refuses names the suite does not have: a renamed test must not drop out of a list unseen.
func known(names map[string]bool, all []spec) error {
	have := map[string]bool{}
	for _, sp := range all {
		have[sp.name] = true
	}
	var errs []error
	for name := range names {
		if !have[name] {
			errs = append(errs, fmt.Errorf("the suite has no conformance test %q", name))
		}
	}
	return errors.Join(errs...)
}
