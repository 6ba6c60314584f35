package settings

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Kind is the form of a setting's value.
type Kind int

const (
	// String is one word.
	String Kind = iota
	// Int is a whole number.
	Int
	// Bool is on or off; on the command line the bare flag means on.
	Bool
	// List is a list whose items may also be separated by commas.
	List
	// Args is a list whose items may contain commas: one flag each, and in the environment
	// separated by ";".
	Args
)

// Setting is one thing that can be set. Its environment variable is MOTE_ and the name in capitals
// with "_" for "-"; its key in a file is the name.
type Setting struct {
	Name    string
	Kind    Kind
	Default string
	Usage   string
	// Group is the heading of the setting in help.
	Group string
}

// Env is the name of the setting's environment variable.
func (s Setting) Env() string {
	return "MOTE_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// value is what was found, and where, for messages.
type value struct {
	items  []string
	source string
	given  string // what Replace has replaced
}

// Values are the settings of one run.
type Values struct {
	known map[string]Setting
	found map[string]value
}

// Sources are the places values are looked up in, strongest first.
type Sources struct {
	// Flags are the flags that were given, by name.
	Flags map[string][]string
	// LookupEnv finds an environment variable.
	LookupEnv func(string) (string, bool)
	// Files are the configuration files as read by ReadFiles.
	Files File
}

// Resolve finds the value of every setting. Numbers and switches are checked here, so that what
// Values returns is always of the right form. Every fault is returned.
func Resolve(all []Setting, from Sources) (Values, error) {
	v := Values{known: make(map[string]Setting, len(all)), found: make(map[string]value, len(all))}
	var faults []error
	for _, s := range all {
		v.known[s.Name] = s
		got, err := lookup(s, from)
		if err == nil {
			err = check(s, got)
		}
		faults = append(faults, err)
		v.found[s.Name] = got
	}
	if err := errors.Join(faults...); err != nil {
		return Values{}, err
	}
	return v, nil
}

func lookup(s Setting, from Sources) (value, error) {
	if items, ok := from.Flags[s.Name]; ok {
		return value{items: split(s, items), source: "--" + s.Name}, nil
	}
	if from.LookupEnv != nil {
		// Empty counts as not set: unit files and shells often leave it so.
		if text, ok := from.LookupEnv(s.Env()); ok && text != "" {
			items := []string{text}
			if s.Kind == Args {
				items = strings.Split(text, ";")
			}
			return value{items: split(s, items), source: s.Env()}, nil
		}
	}
	if entry, ok := from.Files[s.Name]; ok {
		if len(entry.items) != 1 && s.Kind != List && s.Kind != Args {
			return value{}, fmt.Errorf("%s in %s is a list: it takes one value", s.Name, entry.path)
		}
		return value{items: split(s, entry.items), source: entry.path}, nil
	}
	if s.Default == "" {
		return value{}, nil
	}
	return value{items: split(s, []string{s.Default}), source: ""}, nil
}

// split breaks the items of a List at commas and drops empty ones.
func split(s Setting, items []string) []string {
	switch s.Kind {
	case List:
		items = strings.Split(strings.Join(items, ","), ",")
	case Args:
	default:
		// As with other tools, the last of several flags counts.
		return items[len(items)-1:]
	}
	out := make([]string, 0, len(items))
	for _, item := range items {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

func check(s Setting, v value) error {
	if len(v.items) == 0 {
		return nil
	}
	switch s.Kind {
	case Int:
		// 010 is eight to some programs and ten to others.
		if n, err := strconv.Atoi(v.items[0]); err != nil || strconv.Itoa(n) != v.items[0] {
			return fmt.Errorf("%s %q%s is no number: write it in decimal digits", s.Name, v.items[0], v.from())
		}
	case Bool:
		if _, ok := parseBool(v.items[0]); !ok {
			return fmt.Errorf("%s %q%s is neither true nor false", s.Name, v.items[0], v.from())
		}
	}
	return nil
}

// parseBool reads what flags and YAML take for a boolean.
func parseBool(text string) (on, ok bool) {
	switch strings.ToLower(text) {
	case "true", "t", "yes", "y", "on", "1":
		return true, true
	case "false", "f", "no", "n", "off", "0":
		return false, true
	}
	return false, false
}

func (v value) from() string {
	if v.source == "" {
		return ""
	}
	return " (from " + v.source + ")"
}

func (v Values) get(name string, kinds ...Kind) value {
	s, ok := v.known[name]
	if !ok || !slices.Contains(kinds, s.Kind) {
		// Only a mistake in this program leads here; a wrong default would hide it.
		panic("no setting " + name + " of that kind")
	}
	return v.found[name]
}

// String is the value of a String setting, empty when it was not set.
func (v Values) String(name string) string {
	if items := v.get(name, String).items; len(items) > 0 {
		return items[0]
	}
	return ""
}

// Replace puts what with returns in place of the value of a String setting. One that is not among
// the settings, or not set, is left out.
func (v Values) Replace(name string, with func(string) (string, error)) error {
	was, ok := v.found[name]
	if !ok || len(was.items) == 0 {
		return nil
	}
	now, err := with(was.items[0])
	if err != nil {
		return fmt.Errorf("%w%s", err, was.from())
	}
	v.found[name] = value{
		items:  []string{now},
		source: was.source,
		given:  was.items[0],
	}
	return nil
}

// Given is the value of a String setting as it was written, whatever replaced it.
func (v Values) Given(name string) string {
	if got := v.get(name, String); got.given != "" {
		return got.given
	}
	return v.String(name)
}

// Int is the value of an Int setting, 0 when it was not set.
func (v Values) Int(name string) int {
	if items := v.get(name, Int).items; len(items) > 0 {
		n, _ := strconv.Atoi(items[0])
		return n
	}
	return 0
}

// Bool is the value of a Bool setting, false when it was not set.
func (v Values) Bool(name string) bool {
	if items := v.get(name, Bool).items; len(items) > 0 {
		on, _ := parseBool(items[0])
		return on
	}
	return false
}

// List is the items of a List or Args setting.
func (v Values) List(name string) []string { return v.get(name, List, Args).items }

// From names where a value comes from, as " (from MOTE_X)", for messages; it is empty for a
// default.
func (v Values) From(name string) string { return v.found[name].from() }
