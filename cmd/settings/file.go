package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultFile is read when it exists.
const DefaultFile = "/etc/mote/config.yaml"

// extensions are those of files in the folder beside the configuration file. Others, such as an
// editor's copies, are not read.
var extensions = []string{".yaml", ".yml", ".json"}

// File is what the configuration files say, by key.
type File map[string]entry

type entry struct {
	items []string
	path  string
}

// Keys are what a configuration file may hold.
type Keys struct {
	Known []string
	// Answer says what to do instead of giving an unknown key; "" if nothing better is known than
	// the nearest known one. It may be nil.
	Answer func(key string) string
}

// ReadFiles reads a configuration file and, after it in the order of their names, the files of the
// folder beside it that is called like it with ".d" added. A later file's value replaces an earlier
// one's. Every fault of every file is returned, beside what has none. The file itself may be
// missing unless it is required.
func ReadFiles(path string, required bool, keys Keys) (File, error) {
	all := File{}
	var faults []error
	switch err := readFile(all, path, keys); {
	case !errors.Is(err, fs.ErrNotExist):
		faults = append(faults, err)
	case required:
		return nil, err
	default:
		faults = append(faults, danglingLink(path), otherName(path))
	}
	fragments, err := fragmentsOf(path)
	if err != nil {
		return nil, err
	}
	for _, fragment := range fragments {
		faults = append(faults, readFile(all, fragment, keys))
	}
	return all, errors.Join(faults...)
}

// danglingLink refuses a link to a file that is not there: somebody put it there to be read.
func danglingLink(path string) error {
	to, err := os.Readlink(path)
	if err != nil {
		return nil // no link, or not there at all
	}
	return fmt.Errorf("read configuration: %s is a link to %s, which is not there: make that file, or remove the link",
		path, to)
}

// otherName refuses a file that nobody reads although it is meant to be: the default file under
// another usual ending.
func otherName(path string) error {
	for _, ext := range extensions {
		other := strings.TrimSuffix(path, filepath.Ext(path)) + ext
		if other == path {
			continue
		}
		if _, err := os.Stat(other); err == nil {
			return fmt.Errorf("%s is not read: rename it to %s, or give it with --config", other, path)
		}
	}
	return nil
}

// fragmentsOf lists the files beside a configuration file.
func fragmentsOf(path string) ([]string, error) {
	// Sorted by name.
	entries, err := os.ReadDir(path + ".d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list configuration files: %w", err)
	}
	var fragments []string
	for _, e := range entries {
		if name := e.Name(); slices.Contains(extensions, filepath.Ext(name)) && !strings.HasPrefix(name, ".") {
			fragments = append(fragments, filepath.Join(path+".d", name))
		}
	}
	return fragments, nil
}

func readFile(into File, path string, keys Keys) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	pairs, err := parse(data)
	if err != nil {
		return fmt.Errorf("parse configuration %s: %s", path, oneLine(err))
	}
	var faults []error
	lines := map[string]int{}
	for _, p := range pairs {
		if first, twice := lines[p.key]; twice {
			faults = append(faults, fmt.Errorf("key %q is twice in %s, in lines %d and %d: remove one", p.key, path,
				first, p.line))
			continue
		}
		lines[p.key] = p.line
		if !slices.Contains(keys.Known, p.key) {
			faults = append(faults, keys.unknown(p.key, path))
			continue
		}
		items, err := p.items()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s in %s, line %d, %w", p.key, path, p.line, err))
			continue
		}
		if items == nil {
			// "key:" with nothing after it, as a template leaves it.
			continue
		}
		into[p.key] = entry{items, path}
	}
	return errors.Join(faults...)
}

// unknown says what to do about a key that is not known.
func (k Keys) unknown(key, path string) error {
	if k.Answer != nil {
		if answer := k.Answer(key); answer != "" {
			return fmt.Errorf("unknown key %q in %s: %s", key, path, answer)
		}
	}
	if list, ok := strings.CutSuffix(key, "+"); ok && slices.Contains(k.Known, list) {
		return fmt.Errorf("unknown key %q in %s: a later file replaces the whole list: write %q with all its items",
			key, path, list)
	}
	return fmt.Errorf(
		"unknown key %q in %s%s: remove it; the keys are the long flags of `mote server --help` and `mote "+
			"agent --help`", key, path, Suggest(key, k.Known))
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
