package cmd

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/cmd/settings"
)

// shells are the ones completion is written for.
var shells = []string{"bash", "zsh", "fish"}

func (p program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script that completes mote's commands in a shell",
		ArgsUsage: strings.Join(shells, "|"),
		Description: "bash: source <(mote completion bash)\nzsh:  source <(mote completion zsh)\nfish: mote " +
			"completion fish | source",
		Action: func(c *cli.Context) error {
			shell := c.Args().First()
			if c.NArg() != 1 || !slices.Contains(shells, shell) {
				return fmt.Errorf("completion of %q is not known%s; write `mote completion %s`",
					strings.Join(c.Args().Slice(), " "), settings.Suggest(shell, shells), strings.Join(shells, "|"))
			}
			switch shell {
			case "fish":
				fishCompletion(p.stdout, c.App.Commands)
			case "zsh":
				fmt.Fprint(p.stdout, "autoload -U +X bashcompinit && bashcompinit\n")
				bashCompletion(p.stdout, c.App.Commands)
			default:
				bashCompletion(p.stdout, c.App.Commands)
			}
			return nil
		},
	}
}

// words are what can follow a command: the ones below it and its flags.
func words(c *cli.Command) []string {
	out := commandNames(c.Subcommands)
	for _, f := range c.Flags {
		out = append(out, "--"+f.Names()[0])
	}
	if c.Name == "completion" {
		out = append(out, shells...)
	}
	return out
}

// bashCompletion writes one function: words by the commands typed so far, kubectl's own completion
// behind `mote kubectl`, and files where a file is expected.
func bashCompletion(w io.Writer, commands []*cli.Command) {
	fmt.Fprintf(w, `_mote() {
	local cur=${COMP_WORDS[COMP_CWORD]} path="" w
	COMPREPLY=()
	if [ "${COMP_WORDS[1]}" = kubectl ] && [ "$COMP_CWORD" -gt 1 ]; then
		local IFS=$'\n'
		COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" kubectl __complete "${COMP_WORDS[@]:2:COMP_CWORD-1}" 2>/dev/null | grep -v '^:' | cut -f1)" -- "$cur"))
		return
	fi
	for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $w in -*) ;; *) path="$path $w" ;; esac
	done
	case "$path" in
	"") COMPREPLY=($(compgen -W %q -- "$cur")) ;;
`, strings.Join(commandNames(commands), " "))
	var write func(path string, c *cli.Command)
	write = func(path string, c *cli.Command) {
		path += " " + c.Name
		fmt.Fprintf(w, "\t%q) COMPREPLY=($(compgen -W %q -- \"$cur\") $(compgen -f -- \"$cur\")) ;;\n", path,
			strings.Join(words(c), " "))
		for _, sub := range c.Subcommands {
			write(path, sub)
		}
	}
	for _, c := range commands {
		write("", c)
	}
	fmt.Fprint(w, "\t*) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n\tesac\n}\ncomplete -o filenames -F _mote mote\n")
}

func fishCompletion(w io.Writer, commands []*cli.Command) {
	quote := func(s string) string { return "'" + strings.NewReplacer("\\", "\\\\", "'", "\\'").Replace(s) + "'" }
	seen := func(names []string) string { return "__fish_seen_subcommand_from " + strings.Join(names, " ") }
	all := commandNames(commands)
	for _, c := range commands {
		fmt.Fprintf(w, "complete -c mote -f -n %s -a %s -d %s\n", quote("not "+seen(all)), c.Name, quote(c.Usage))
		below := commandNames(c.Subcommands)
		for _, sub := range c.Subcommands {
			fmt.Fprintf(w, "complete -c mote -f -n %s -a %s -d %s\n",
				quote(seen([]string{c.Name})+"; and not "+seen(below)), sub.Name, quote(sub.Usage))
			fishFlags(w, quote(seen([]string{c.Name})+"; and "+seen([]string{sub.Name})), sub.Flags, quote)
		}
		fishFlags(w, quote(seen([]string{c.Name})), c.Flags, quote)
	}
	fmt.Fprintf(w, "complete -c mote -f -n %s -a %s\n", quote(seen([]string{"completion"})),
		quote(strings.Join(shells, " ")))
	fmt.Fprintf(w, "complete -c mote -f -n %s -a %s\n", quote(seen([]string{"kubectl"})),
		quote(
			"(set -l t (commandline -opc) (commandline -ct); mote kubectl __complete $t[3..-1] 2>/dev/null | string "+
				"match -v ':*')"))
}

func fishFlags(w io.Writer, condition string, flags []cli.Flag, quote func(string) string) {
	for _, f := range flags {
		value := " -r"
		if _, isBool := f.(*cli.BoolFlag); isBool {
			value = ""
		}
		usage := ""
		if d, ok := f.(cli.DocGenerationFlag); ok {
			usage = strings.ReplaceAll(d.GetUsage(), "`", "")
		}
		fmt.Fprintf(w, "complete -c mote -n %s -l %s%s -d %s\n", condition, f.Names()[0], value, quote(usage))
	}
}
