package upstreamflag

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
)

// Split takes an argument apart. People write dashes in front of it or leave them out.
func Split(arg string) (name, value string) {
	name, value, _ = strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return name, value
}

// Value is that of the last argument called name, or otherwise if there is none.
func Value(args []string, name, otherwise string) string {
	for _, arg := range args {
		if n, v := Split(arg); n == name {
			otherwise = v
		}
	}
	return otherwise
}

// Apply sets args in flags, in their order. An error names setting, mote's own name for the list,
// and the argument.
func Apply(flags *pflag.FlagSet, setting string, args []string) error {
	// The kubelet's flags all say that they are deprecated: its own command prefers a file.
	flags.SetOutput(io.Discard)
	for _, arg := range args {
		name, value := Split(arg)
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("%s %q: %w", setting, arg, err)
		}
	}
	return nil
}
