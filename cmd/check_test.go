package cmd

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// An agent listens on no port of a server's, so that 6443 may be taken there.
func TestCheck_Agent_NoServerPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	config := filepath.Join(t.TempDir(), "config.yaml")
	// One file may hold the keys of both commands.
	writeFile(t, config, "https-listen-port: "+port+"\nbind-address: 127.0.0.1\nserver: 192.0.2.10\n"+
		"token: abcdef.0123456789abcdef\n")
	args := []string{"--config", config, "--data-dir", filepath.Join(shortDir(t), "d"), "--node-name", "n1",
		"--kubelet-arg", "port=" + freePort(t)}
	c := run(t, nil, append([]string{"check"}, args...)...)
	if c.code != 1 || !strings.Contains(c.stdout, "needed for the API server") {
		t.Errorf("a server's port is taken: code %d, %s%s", c.code, c.stdout, c.stderr)
	}
	c = run(t, nil, append([]string{"check", "--agent"}, args...)...)
	if strings.Contains(c.stdout, "API server") || strings.Contains(c.stdout, port) ||
		strings.Contains(c.stdout, "joining") || !strings.Contains(c.stdout, "the kubelet") {
		t.Errorf("an agent's check: code %d, %s%s", c.code, c.stdout, c.stderr)
	}
	if strings.Contains(c.stdout, "mote runs here") || c.code == 0 && !strings.Contains(c.stdout, "mote can run here") {
		t.Errorf("it says %s", c.stdout)
	}
}

// People check a machine before they have a token for it.
func TestCheck_Agent_NotToldWhereToJoin_Warns(t *testing.T) {
	c := run(t, nil, "check", "--agent", "--data-dir", filepath.Join(shortDir(t), "d"), "--node-name", "n1",
		"--kubelet-arg", "port="+freePort(t))
	for _, want := range []string{"warn  joining         server is missing", "→ give --server https://HOST:6443",
		"warn  joining         token is missing"} {
		if !strings.Contains(c.stdout, want) {
			t.Errorf("%s%s\nlacks %q", c.stdout, c.stderr, want)
		}
	}
}

// A flag that the role does not have would be accepted and ignored.
func TestCheck_FlagsOfTheOtherRole_Refused(t *testing.T) {
	refused(t, run(t, nil, "check", "--server", "192.0.2.10"), "--server", "`mote agent`", "add --agent")
	refused(t, run(t, nil, "check", "--agent", "--https-listen-port", "7443"), "--https-listen-port", "`mote server`",
		"leave out --agent")
	refused(t, run(t, nil, "check", "--agent", "--server", "http://192.0.2.10"), "no address of a server")
}

// freePort is one that nothing listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
