package nfttool

import (
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/netnstest"
)

// inNamespace runs the rest of the calling test in a network namespace of its own where there is
// nft.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if !Available() {
		t.Skip("needs nft")
	}
	return netnstest.Enter(t)
}

func nft(t *testing.T, script string) {
	t.Helper()
	if _, err := Run(t.Context(), script, "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

const body = "chain post {\ntype nat hook postrouting priority srcnat\nip saddr 10.42.0.0/16 masquerade\n}\n"

func TestTable_Apply_DisturbedBetweenWritingAndListing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, row := range []struct {
		name  string
		harm  string
		times int
	}{
		{"not at all", "", 0},
		{"once", "flush chain inet own post", 1},
		{"twice in the same way", "flush chain inet own post", 2},
		{"by additions", "add rule inet own post drop", 2},
		{"beside it", "add table inet other\ndelete table inet other", 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			writes := 0
			table := Table{Name: "own"}
			table.written = func() {
				if writes++; writes <= row.times {
					nft(t, row.harm)
				}
			}
			script := table.Script(body)
			if err := table.Apply(t.Context(), script); err != nil {
				t.Fatal(err)
			}
			if writes != row.times+1 {
				t.Errorf("written %d times, want %d", writes, row.times+1)
			}
			if !strings.Contains(table.listed, "masquerade") || strings.Contains(table.listed, "drop") {
				t.Errorf("this was recorded as the table:\n%s", table.listed)
			}
			if ok, err := table.Intact(t.Context()); err != nil || !ok {
				t.Errorf("intact: %v, %v", ok, err)
			}
			nft(t, "flush chain inet own post")
			if ok, err := table.Intact(t.Context()); err != nil || ok {
				t.Errorf("intact after a flush: %v, %v", ok, err)
			}
		})
	}
}

func TestTable_Apply_DisturbedAllTheTime(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	// Writes to other tables do not keep Apply from succeeding.
	table := Table{Name: "own", written: func() { nft(t, "add table inet other\ndelete table inet other") }}
	if err := table.Apply(t.Context(), table.Script(body)); err != nil ||
		!strings.Contains(table.listed, "masquerade") {
		t.Errorf("%v, and this was recorded as the table:\n%s", err, table.listed)
	}
	// A program that keeps changing our table is reported.
	n := 0
	table = Table{Name: "own", written: func() {
		if n++; n%2 == 0 {
			nft(t, "flush chain inet own post")
		} else {
			nft(t, "add rule inet own post drop")
		}
	}}
	if err := table.Apply(t.Context(), table.Script(body)); err == nil ||
		!strings.Contains(err.Error(), "another program") {
		t.Errorf("a table that keeps changing ended with %v", err)
	}
}

func TestGeneration_RisesByOne(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	before, err := generation()
	if err != nil {
		t.Fatal(err)
	}
	nft(t, "add table inet a\nadd table inet b\ndelete table inet a")
	after, err := generation()
	if err != nil || after != before+1 {
		t.Errorf("generation %d after one transaction, before %d (%v)", after, before, err)
	}
}
