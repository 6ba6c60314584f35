package cmd

import (
	"slices"
	"testing"
)

func TestProgram_WithoutCrictlConfig(t *testing.T) {
	for _, row := range []struct {
		name, file string
		args, want []string
	}{
		{"no file", "", []string{"ps"}, []string{"CRI_CONFIG_FILE=/dev/null"}},
		{"no words", "", nil, []string{"CRI_CONFIG_FILE=/dev/null"}},
		{"another file", "/srv/crictl.yaml", []string{"ps"}, nil},
		{"the command that makes it", "", []string{"config", "--set", "timeout=5"}, nil},
		{"the same after flags", "", []string{"--debug", "config", "--list"}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := program{lookupEnv: func(name string) (string, bool) {
				return row.file, name == "CRI_CONFIG_FILE" && row.file != ""
			}}
			if got := p.withoutCrictlConfig(row.args); !slices.Equal(got, row.want) {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}
