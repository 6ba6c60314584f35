package cmd

import (
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Help fits a terminal, puts a role's settings under headings, and names what a flag takes.
func TestHelp_FitsAndIsGrouped(t *testing.T) {
	backquoted := regexp.MustCompile("`[^`]*$|``")
	var check func(path []string, commands []*cli.Command)
	check = func(path []string, commands []*cli.Command) {
		for _, c := range commands {
			words := append(path[:len(path):len(path)], c.Name)
			if c.SkipFlagParsing {
				continue // its flags and help are the tool's
			}
			help := run(t, nil, append(words, "--help")...)
			if help.code != 0 || !strings.HasPrefix(help.stdout, "mote "+strings.Join(words, " ")+" - ") {
				t.Errorf("%v: code %d, %q", words, help.code, help.stdout)
			}
			for line := range strings.Lines(help.stdout) {
				if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 || backquoted.MatchString(line) &&
					strings.Count(help.stdout, "`")%2 == 1 {
					t.Errorf("%v: %d columns, or quotes that do not match: %q", words, n, line)
				}
			}
			for _, f := range c.Flags {
				if !strings.Contains(help.stdout, "--"+f.Names()[0]) {
					t.Errorf("%v: --%s is missing", words, f.Names()[0])
				}
			}
			check(words, c.Subcommands)
		}
	}
	check(nil, program{}.app().Commands)
	for _, role := range []string{"server", "agent", "check"} {
		out := run(t, nil, role, "--help").stdout
		if n := strings.Count(out, ":\n  "); n < 5 {
			t.Errorf("%s: %d headings", role, n)
		}
		if _, rest, found := strings.Cut(out, "\n"+otherFlags+":\n"); found && (role != "check" ||
			strings.Count(strings.SplitN(rest, "\n\n", 2)[0], "--") > 2) {
			t.Errorf("%s: settings without a group:\n%s", role, rest)
		}
	}
	if out := run(t, nil, "store", "--help").stdout; !strings.Contains(out, "--datastore-durability VALUE") ||
		!strings.Contains(out, "--cert-file FILE") || !strings.Contains(out, "--listen HOST:PORT") {
		t.Errorf("placeholders of store:\n%s", out)
	}
}

func TestHelp_Spellings(t *testing.T) {
	version := run(t, nil, "version")
	for _, word := range []string{"--version", "-v", "-V"} {
		if c := run(t, nil, word); c.code != 0 || c.stdout != version.stdout || c.stderr != "" {
			t.Errorf("mote %s: %+v, want what mote version says", word, c)
		}
	}
	for _, row := range []struct{ same, as []string }{
		{[]string{"help"}, []string{"--help"}}, {[]string{"-h"}, []string{"--help"}},
		{[]string{}, []string{"--help"}},
		{[]string{"help", "token"}, []string{"token", "--help"}},
		{[]string{"token", "help"}, []string{"token", "--help"}},
		{[]string{"help", "token", "create"}, []string{"token", "create", "--help"}},
		{[]string{"help", "server"}, []string{"server", "-h"}},
	} {
		got, want := run(t, nil, row.same...), run(t, nil, row.as...)
		if got.code != 0 || got.stdout != want.stdout || got.stderr != "" || !strings.Contains(got.stdout, "mote") {
			t.Errorf("mote %s: code %d, %q and %q; want what mote %s says", strings.Join(row.same, " "), got.code,
				got.stdout, got.stderr, strings.Join(row.as, " "))
		}
	}
	refused(t, run(t, nil, "help", "tokn"), `unknown command "tokn"`, `did you mean "token"?`)
	refused(t, run(t, nil, "help", "token", "creat"), `unknown command "creat" of mote token`)
}
