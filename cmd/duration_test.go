package cmd

import (
	"testing"
	"time"
)

// Every setting and flag that is a duration takes days and weeks.
func TestParseDuration_Spellings(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"30m": 30 * time.Minute, "24h": day, "0": 0, "7d": 7 * day, "1w": 7 * day, "365d": 365 * day,
		"1d12h": 36 * time.Hour, "1w2d3h4m5s": 9*day + 3*time.Hour + 4*time.Minute + 5*time.Second, "0d": 0,
		"-1h": -time.Hour,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "tomorrow", "7", "d", "7 d", "7D", "-7d", "1d-1h", "1h7d", "1d1w", "999999d",
		"9999w99999d", "1y", "1d1"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %v, want it refused", text, got)
		}
	}
}

func TestTTL_DaysEverywhere(t *testing.T) {
	for _, args := range [][]string{{"token", "create"}, {"kubeconfig", "create", "--user", "jane"}} {
		for _, ttl := range []string{"7d", "1w", "1d12h", "36h"} {
			// It is accepted: what is missing is a cluster.
			c := run(t, nil, append(args, "--ttl", ttl, "--kubeconfig", "/nowhere/kubeconfig")...)
			refused(t, c, "/nowhere/kubeconfig")
		}
	}
	c := run(t, nil, "kubeconfig", "create", "--user", "jane", "--ttl", "soon")
	refused(t, c, `ttl "soon" is no duration`, "7d")
}
