package cmd

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestTokenAndNode_BadInput(t *testing.T) {
	dir := t.TempDir()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig.yaml")
	writeFile(t, kubeconfig, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a"}}],
"clusters": [{"name": "a", "cluster": {"server": "https://%s"}}]}`, address))
	config := filepath.Join(dir, "config.yaml")
	writeFile(t, config, "kubeconfig-output: "+filepath.Join(dir, "missing.yaml")+"\n")
	with := func(words ...string) []string { return slices.Insert(words, 2, "--kubeconfig", kubeconfig) }
	for _, row := range []struct {
		name string
		env  map[string]string
		args []string
		want []string
	}{
		{"no command", nil, []string{"token"}, []string{"create, delete, list, rotate"}},
		{"unknown command", nil, []string{"node", "forgt"}, []string{`did you mean "forget"?`}},
		{"a word too many", nil, with("token", "create", "now"), []string{"mote token create [flags]"}},
		{"a word too few", nil, with("node", "forget"), []string{"mote node forget [flags] NAME"}},
		{"no server here", map[string]string{"MOTE_CONFIG": config}, []string{"token", "list"},
			[]string{"missing.yaml is not there", "server", "--kubeconfig"}},
		{"a flag too late", nil, []string{"node", "forget", "n1", "--kubeconfig", kubeconfig},
			[]string{"--kubeconfig comes too late"}},
		{"a server that is off", nil, with("token", "list"), []string{"does not answer", address, "mote server"}},
		{"a file that is none", nil, []string{"node", "list", "--kubeconfig", config}, []string{"use kubeconfig"}},
		{"a ttl that is none", nil, with("token", "create", "--ttl", "tomorrow"), []string{`ttl "tomorrow"`, "24h"}},
		{"a ttl in the past", nil, with("token", "create", "--ttl", "-1h"), []string{`ttl "-1h"`}},
		{"no id", nil, with("token", "delete", "abcdef.0123456789abcdef"),
			[]string{"no token's id", "mote token list"}},
		{"no node's name", nil, with("node", "forget", "N1/x"), []string{"no node's name", "mote node list"}},
		{"rotated elsewhere", nil, with("token", "rotate", "--data-dir", filepath.Join(dir, "nothing")),
			[]string{"no server in", "--data-dir"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := run(t, row.env, row.args...)
			refused(t, c, row.want...)
			if strings.Contains(c.stderr, "0123456789abcdef") {
				t.Errorf("the message quotes a secret: %q", c.stderr)
			}
		})
	}
}

// A terminal shows the token once; a log keeps what it is told, and others read it.
func TestLineUI_Ready_HoldsNoToken(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	newLineUI(zap.New(core)).Ready(Ready{Took: time.Second, JoinCommand: "mote agent --token abcdef.0123456789abcdef",
		TokenFile: "/var/lib/mote/server/token"})
	for _, e := range logs.All() {
		text := fmt.Sprint(e.Message, e.ContextMap())
		if strings.Contains(text, "0123456789abcdef") {
			t.Errorf("the log has the token: %s", text)
		}
		if !strings.Contains(text, "/var/lib/mote/server/token") || !strings.Contains(text, "mote token create") {
			t.Errorf("the log does not say how to join: %s", text)
		}
	}
}
