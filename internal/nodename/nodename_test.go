package nodename

import (
	"strings"
	"testing"
)

// A name that cannot register is refused before anything starts: 71 characters with dots, capitals,
// a dot at the end, underscores.
func TestValidate(t *testing.T) {
	long := strings.Repeat("a", 30) + "." + strings.Repeat("b", 30) + ".example.c" // 71 characters
	for _, row := range []struct{ name, want string }{
		{"n1", ""},
		{"n1.example.org", ""},
		{"007", ""},
		{strings.Repeat("a", 63), ""},
		{strings.Repeat("a", 64), "is 64 characters long"},
		{long, "is 71 characters long, dots included: choose one with --node-name, of at most 63 lower case letters, " +
			"digits, '-' and '.', such as " + strings.Repeat("a", 30)},
		{"Node1", "such as node1"},
		{"node1.", "such as node1"},
		{"my_node", "such as my-node"},
		{"-node-", "such as node"},
		{"a..b", "such as a.b"},
		{"my node", "such as my-node"},
		{"knüller", "such as knller"},
		{"(none)", "such as none"},
		{"", "is no DNS name"},
		{"...", "is no DNS name"},
	} {
		err := Validate(row.name)
		if (err != nil) != (row.want != "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: %v, want %q", row.name, err, row.want)
		}
		if p := propose(row.name); p != "" && Validate(p) != nil {
			t.Errorf("%q: the proposal %q is refused itself: %v", row.name, p, Validate(p))
		}
	}
}

func TestOfHost(t *testing.T) {
	for host, want := range map[string]string{
		"Raspi4":             "raspi4",
		"Host.Example.ORG.":  "host.example.org",
		"my_host":            "my_host", // refused by Validate: my-host may be another machine
		"localhost\n":        "localhost",
		"web1.example.local": "web1.example.local",
	} {
		if got := OfHost(host); got != want {
			t.Errorf("%q makes %q, want %q", host, got, want)
		}
	}
}
