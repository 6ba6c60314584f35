package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// toolTimeout bounds one run of nft; a hung one must not stop repairs for ever.
const toolTimeout = 30 * time.Second

// errNoTable says that nft knows no table of the asked name.
var errNoTable = errors.New("table does not exist")

// runNFT runs the nft tool with script on its standard input and returns what it printed.
func runNFT(ctx context.Context, script string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", args...)
	// Messages are matched below, so they must not be translated.
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(script)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		message := strings.TrimSpace(stderr.String())
		// nft has no exit code of its own for this case.
		if strings.Contains(message, "No such file or directory") {
			return "", fmt.Errorf("run nft %s: %w", strings.Join(args, " "), errNoTable)
		}
		return "", fmt.Errorf("run nft %s: %w: %s", strings.Join(args, " "), err, message)
	}
	return stdout.String(), nil
}

// stableTries bounds how often Apply repeats itself while another program changes the table under its hands.
const stableTries = 5

// nftFirewall keeps the node's rules in one nftables table. It is not safe for concurrent use.
type nftFirewall struct {
	applied string // the script last applied
	listed  string // how the kernel lists what that script makes; what Intact compares with
}

// Apply implements [firewall].
func (f *nftFirewall) Apply(ctx context.Context, r Rules) error {
	script := RenderNFTables(r)
	if script != f.applied {
		f.applied, f.listed = "", ""
	}
	// Another program may change the table between our writing and our listing, and its version would then pass for ours.
	// Two equal listings after two writings are taken for the truth.
	before := f.listed
	for range stableTries {
		if _, err := runNFT(ctx, script, "-f", "-"); err != nil {
			return fmt.Errorf("apply table inet %s: %w", Table, err)
		}
		listed, err := f.list(ctx)
		if err != nil {
			return err
		}
		if listed == before {
			f.applied, f.listed = script, listed
			return nil
		}
		before = listed
	}
	return fmt.Errorf("apply table inet %s: another program keeps changing it", Table)
}

// Intact implements [firewall].
func (f *nftFirewall) Intact(ctx context.Context) (bool, error) {
	if f.applied == "" {
		return false, nil
	}
	listed, err := f.list(ctx)
	if errors.Is(err, errNoTable) {
		return false, nil
	}
	return listed == f.listed, err
}

// Remove implements [firewall].
func (f *nftFirewall) Remove(ctx context.Context) error {
	f.applied, f.listed = "", ""
	if _, err := exec.LookPath("nft"); err != nil {
		return nil
	}
	if _, err := runNFT(ctx, "", "delete", "table", "inet", Table); err != nil && !errors.Is(err, errNoTable) {
		return fmt.Errorf("delete table inet %s: %w", Table, err)
	}
	return nil
}

// list prints the table without counters, so that two listings of equal rules are equal.
func (f *nftFirewall) list(ctx context.Context) (string, error) {
	return runNFT(ctx, "", "--stateless", "list", "table", "inet", Table)
}
