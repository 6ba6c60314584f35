package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// DefaultFile is read when it exists.
const DefaultFile = "/etc/mote/config.yaml"

// File is what the configuration files say, by key.
type File map[string]entry

type entry struct {
	items []string
	path  string
}

// ReadFiles reads a configuration file and, after it in the order of their names, the .yaml files
// of the folder beside it that is called like it with ".d" added. A later file's value replaces an
// earlier one's. A key that is not in known is refused. The file itself may be missing unless it is
// required.
func ReadFiles(path string, required bool, known []string) (File, error) {
	all := File{}
	err := readFile(all, path, known)
	if err != nil && (required || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	fragments, err := filepath.Glob(filepath.Join(path+".d", "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("list %s.d: %w", path, err)
	}
	slices.Sort(fragments)
	for _, fragment := range fragments {
		if err := readFile(all, fragment, known); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func readFile(into File, path string, known []string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var content map[string]any
	useNumber := func(d *json.Decoder) *json.Decoder { d.UseNumber(); return d }
	if err := yaml.UnmarshalStrict(data, &content, useNumber); err != nil {
		return fmt.Errorf("parse configuration %s: %s", path, oneLine(err))
	}
	for _, key := range slices.Sorted(keys(content)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf(
				"unknown key %q in %s%s: remove it; the keys are the long flags of `mote server --help` and `mote "+
					"agent --help`", key, path, Suggest(key, known))
		}
		items, err := scalars(content[key])
		if err != nil {
			return fmt.Errorf("%s in %s %w", key, path, err)
		}
		if items == nil {
			// "key:" with nothing after it, as a template leaves it.
			continue
		}
		into[key] = entry{items, path}
	}
	return nil
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

var errForm = errors.New("must be a value or a list of values")

func scalars(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case json.Number:
		return []string{v.String()}, nil
	case bool:
		return []string{fmt.Sprint(v)}, nil
	case []any:
		items := make([]string, 0, len(v))
		for _, item := range v {
			one, err := scalars(item)
			if err != nil || len(one) != 1 {
				return nil, errForm
			}
			items = append(items, one[0])
		}
		return items, nil
	default:
		return nil, errForm
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
