package upstreamflag

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/pflag"
)

// Unused are flags of a component that mote has no use for: what they set is not there, or is set
// elsewhere. Accepting one would promise an effect it cannot have.
type Unused map[string]unused

type unused struct {
	why  string
	same []string
}

// Add adds a flag. why ends the message; same are values that ask for nothing else than mote does,
// which are accepted.
func (u Unused) Add(flag, why string, same ...string) { u[flag] = unused{why, same} }

// AddSection adds every flag of a section.
func (u Unused) AddSection(section *pflag.FlagSet, why string) {
	section.VisitAll(func(f *pflag.Flag) { u.Add(f.Name, why) })
}

// Refuse returns an error for each of args that sets one of the flags.
func (u Unused) Refuse(setting string, args []string) error {
	var errs []error
	for _, arg := range args {
		name, value := Split(arg)
		if flag, found := u[name]; found && !slices.Contains(flag.same, value) {
			errs = append(errs, fmt.Errorf("%s %q has no effect in mote: remove it: %s", setting, arg, flag.why))
		}
	}
	return errors.Join(errs...)
}
