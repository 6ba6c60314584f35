package cmd

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/mote-dev/mote/cmd/habits"
	"github.com/mote-dev/mote/cmd/settings"
)

// serviceVariable are the variables that a kubelet puts into a container for a Service, here of one
// called mote or k3s.
var serviceVariable = regexp.MustCompile(
	`^(MOTE|K3S)(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)$`)

// checkVariables refuses variables that look like settings and are none, all of them in one go:
// with a slip of the hand in MOTE_DATA_DIR, a command would act on another folder than it was told.
// Variables of k3s count for the commands that take a role's settings.
func (p program) checkVariables(all []settings.Setting) error {
	if p.environ == nil {
		return nil
	}
	known := []string{configSetting.Env()}
	for _, s := range slices.Concat(serverSettings(), agentSettings(), all) {
		known = append(known, s.Env())
	}
	isKnown := func(name string) bool { return slices.Contains(known, name) }
	ofRole := slices.ContainsFunc(all, func(s settings.Setting) bool { return s.Name == "kubelet-arg" })
	var errs []error
	for _, variable := range slices.Sorted(slices.Values(p.environ())) {
		name, value, _ := strings.Cut(variable, "=")
		// Empty counts as not set, as for settings.
		if value == "" || isKnown(name) || serviceVariable.MatchString(name) {
			continue
		}
		if strings.HasPrefix(name, "MOTE_") {
			hint := settings.Suggest(name, known)
			if answer := habits.Setting(strings.TrimPrefix(name, "MOTE_")); answer != "" {
				hint = ": " + answer
			}
			errs = append(errs, fmt.Errorf("unknown variable %s%s; unset it: variables are MOTE_ and the name of a "+
				"setting, as MOTE_DATA_DIR for data-dir", name, hint))
		} else if answer := habits.Variable(name, isKnown); answer != "" && ofRole {
			errs = append(errs, fmt.Errorf("variable %s is k3s': %s; unset it", name, answer))
		}
	}
	return errors.Join(errs...)
}
