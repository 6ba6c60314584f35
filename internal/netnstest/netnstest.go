package netnstest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// Enter runs the rest of the calling test in a new network namespace with nothing but loopback, by starting this test
// binary again for just that test. It returns true in the namespace, and false outside once the test has passed there;
// then the caller returns. What is skipped there is skipped, and without root all of it is.
func Enter(t *testing.T) bool {
	t.Helper()
	const marker = "MOTE_TEST_NETNS"
	if os.Getenv(marker) == t.Name() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=180s")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespace: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("in namespace:\n%s", out)
	}
	return false
}
