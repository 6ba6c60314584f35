package cmd

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// days are the weeks and days that a duration may begin with.
var days = regexp.MustCompile(`^(?:([0-9]{1,3})w)?(?:([0-9]{1,5})d)?`)

// longest is beyond anything that is meant, and far from what a duration can hold.
const longest = 100 * 366 * 24 * time.Hour

var errNoDuration = errors.New("no duration")

// parseDuration reads a duration as Go writes it, with weeks and days in front: 30m, 24h, 7d,
// 1w2d12h.
func parseDuration(text string) (time.Duration, error) {
	parts := days.FindStringSubmatch(text)
	rest := strings.TrimPrefix(text, parts[0])
	var whole time.Duration
	for i, unit := range []time.Duration{7 * 24 * time.Hour, 24 * time.Hour} {
		if parts[i+1] == "" {
			continue
		}
		n, err := strconv.Atoi(parts[i+1])
		if err != nil {
			return 0, errNoDuration
		}
		whole += time.Duration(n) * unit
	}
	switch {
	case whole > longest:
		return 0, errNoDuration
	case parts[0] != "" && rest == "":
		return whole, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || parts[0] != "" && d < 0 {
		return 0, errNoDuration
	}
	return whole + d, nil
}
