package cmd

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

const (
	// helpWidth is what help fits into.
	helpWidth = 100
	// helpIndent is where the text beside a flag or command begins.
	helpIndent = 30
	// otherFlags is the heading of flags without a group.
	otherFlags = "Flags"
)

// helpText is the help of a command: its flags by group, wrapped. The library's own has one long
// list, and lines as wide as their texts.
func helpText(path string, c *cli.Command) string {
	var b strings.Builder
	b.WriteString(wrap(path+" - "+c.Usage, 0) + "\n")
	usage := path
	switch {
	case c.UsageText != "":
		usage = c.UsageText
	case len(c.Subcommands) > 0:
		usage += " COMMAND [flags]"
	default:
		usage = strings.TrimSpace(usage + " [flags] " + c.ArgsUsage)
	}
	fmt.Fprintf(&b, "Usage: %s\n", usage)
	if c.Description != "" {
		b.WriteString("\n")
		for line := range strings.Lines(c.Description) {
			b.WriteString(wrap(line, 0))
		}
	}
	if len(c.Subcommands) > 0 {
		b.WriteString("\n" + commandsText(c.Subcommands))
	}
	b.WriteString(flagsText(c.Flags))
	return b.String()
}

// appText is the help of mote itself.
func appText(app *cli.App) string {
	return fmt.Sprintf("mote - %s\n\nUsage: mote COMMAND [flags]\n\n%s\n`mote help COMMAND` explains a command, "+
		"`mote --version` prints the versions.\n", app.Usage, commandsText(app.Commands))
}

func commandsText(commands []*cli.Command) string {
	var b strings.Builder
	b.WriteString("Commands:\n")
	for _, c := range commands {
		if !c.Hidden {
			b.WriteString(beside(strings.Join(c.Names(), ", "), c.Usage))
		}
	}
	return b.String()
}

// flagsText lists flags under the headings of their groups, in the order of these.
func flagsText(flags []cli.Flag) string {
	groups := map[string][]string{}
	var order []string
	for _, f := range flags {
		group := otherFlags
		if with, ok := f.(cli.CategorizableFlag); ok && with.GetCategory() != "" {
			group = with.GetCategory()
		}
		if !slices.Contains(order, group) {
			order = append(order, group)
		}
		groups[group] = append(groups[group], flagText(f))
	}
	var b strings.Builder
	for _, group := range order {
		fmt.Fprintf(&b, "\n%s:\n%s", group, strings.Join(groups[group], ""))
	}
	return b.String()
}

// placeholder is a word in capitals between backquotes. Other words between backquotes are commands
// or values that a text quotes.
var placeholder = regexp.MustCompile("`([A-Z][A-Z:]*)`")

func flagText(f cli.Flag) string {
	var names []string
	for _, name := range f.Names() {
		if len(name) == 1 {
			names = slices.Insert(names, 0, "-"+name)
		} else {
			names = append(names, "--"+name)
		}
	}
	left, usage := strings.Join(names, ", "), ""
	doc, ok := f.(cli.DocGenerationFlag)
	if ok {
		usage = doc.GetUsage()
	}
	if ok && doc.TakesValue() {
		word := "VALUE"
		if m := placeholder.FindStringSubmatchIndex(usage); m != nil {
			word = usage[m[2]:m[3]]
			usage = usage[:m[0]] + word + usage[m[1]:]
		}
		left += " " + word
		if value := doc.GetValue(); value != "" && value != "[]" && !strings.Contains(usage, "(default") {
			usage += " (default: " + value + ")"
		}
	}
	return beside(left, usage)
}

// beside puts a text beside a word, or below it if the word is long.
func beside(word, text string) string {
	text = wrap(text, helpIndent)
	if word = "  " + word; len(word) > helpIndent-2 {
		return word + "\n" + text
	}
	return word + strings.Repeat(" ", helpIndent-len(word)) + strings.TrimLeft(text, " ")
}

// wrap breaks a text into lines that begin at a column.
func wrap(text string, indent int) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", indent))
			column = indent
		case column+1+n > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteString(" ")
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String() + "\n"
}

// asTemplate makes a template of the library's that says text.
func asTemplate(text string) string { return strings.ReplaceAll(text, "{{", "{{`{{`}}") }
