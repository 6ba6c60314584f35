package netnstest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// Enter runs the rest of the calling test in a new network namespace with nothing but loopback, by
// running this test binary again for just that test. It returns true inside the namespace. Outside
// it returns false once the test has passed inside, and the caller must return. A skip inside skips
// the test, and so does missing root.
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
