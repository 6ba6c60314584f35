package main_test

import (
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ignorePatterns returns the lines of an ignore file that are patterns.
func ignorePatterns(t *testing.T, file string) []string {
	t.Helper()
	var patterns []string
	for line := range strings.Lines(readFile(t, file)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, line)
		}
	}
	return patterns
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestContainer_Context_LeavesOutWhatGitIgnores holds .dockerignore to the .gitignore files: build
// output, of hundreds of megabytes, is not sent to the builder, and every tracked file is.
func TestContainer_Context_LeavesOutWhatGitIgnores(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "*.gitignore").Output()
	if err != nil {
		t.Skipf("this is no checkout: %v", err)
	}
	var want []string
	for _, file := range strings.Fields(string(out)) {
		for _, pattern := range ignorePatterns(t, file) {
			pattern = strings.TrimSuffix(pattern, "/")
			if anchored, ok := strings.CutPrefix(pattern, "/"); ok {
				want = append(want, "/"+path.Join(path.Dir(file), anchored))
			} else {
				want = append(want, path.Join(path.Dir(file), "**", pattern))
			}
		}
	}
	got := ignorePatterns(t, ".dockerignore")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf(".dockerignore has %q, the .gitignore files amount to %q", got, want)
	}
}

// TestContainer_Dockerfile_FitsTheBuild holds what a build would find only after minutes:
// scripts/container does it whole.
func TestContainer_Dockerfile_FitsTheBuild(t *testing.T) {
	dockerfile := readFile(t, "Dockerfile")
	stages := regexp.MustCompile(`(?m)^FROM `).Split(dockerfile, -1)
	if len(stages) != 3 {
		t.Fatalf("it has %d stages, not 2", len(stages)-1)
	}
	needs := func(what, text, pattern string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("%s: nothing matches %s", what, pattern)
		}
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readFile(t, "go.mod"))
	needs("first stage", stages[1], `^golang:`+regexp.QuoteMeta(version[1])+`-bookworm AS build\n`)
	needs("first stage", stages[1], `(?m)^RUN make build$`)
	packages := regexp.MustCompile(`packages="([^"]*)"`).FindStringSubmatch(readFile(t, "scripts/deps"))[1]
	// What scripts/bundle and the Makefile call.
	for _, name := range []string{"gcc", "git", "libc6-dev", "libseccomp-dev", "make", "pkg-config", "zstd"} {
		needs("first stage", stages[1], `[\s]`+name+`[\s]`)
		needs("scripts/deps", " "+packages+" ", " "+name+" ")
	}
	for _, name := range []string{"ca-certificates", "iptables", "nftables"} {
		needs("second stage", stages[2], `[\s]`+name+`[\s]`)
	}
	needs("second stage", stages[2], `(?m)^COPY --from=build /src/bin/mote /usr/local/bin/mote$`)
	needs("Makefile", readFile(t, "Makefile"), `(?m)^MOTE\s+:= \$\(BIN\)/mote$`)
	needs("second stage", stages[2], `(?m)^VOLUME /var/lib/mote$`)
	needs("second stage", stages[2], `(?m)^EXPOSE 6443 10250$`)
	needs("second stage", stages[2], `(?m)^ENTRYPOINT \["/usr/local/bin/mote"\]\nCMD \["server"\]$`)
}
