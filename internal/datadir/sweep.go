package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// halves are patterns of names of files that have not got their own yet. A process that is killed,
// or a power cut, leaves them.
var halves = []string{
	".new-*",        // package atomicfile's
	".mote-*.tmp",   // the network list's
	".stdin-*.tar",  // an image archive's on its way in
	".mote-check-*", // a trial whether the folder can be written to
}

// sweep removes the half-written files of a mote that was killed. Whoever calls it holds the
// folder. The folders of the offline cache, the store and the tools are swept by those.
func (d *Dir) sweep() error {
	p := At(d.path)
	a := p.Agent()
	var errs []error
	for _, dir := range []string{p.Root, p.Server(), p.TLS(), a.Dir(), a.Identity(), a.Runtime(), a.Registries(),
		a.StaticPods(), a.CNI(), a.CNIConf(), a.Images(), a.Imported()} {
		errs = append(errs, sweepFolder(dir, func(name string) bool {
			for _, half := range halves {
				if is, err := filepath.Match(half, name); is && err == nil {
					return true
				}
			}
			return false
		}))
	}
	outside, err := Outside(d.path)
	errs = append(errs, err)
	for _, file := range outside {
		// The folder is others' too.
		half := halfOf(file)
		errs = append(errs, sweepFolder(filepath.Dir(file), func(name string) bool {
			return strings.HasPrefix(name, half)
		}))
	}
	return errors.Join(errs...)
}

// halfOf is how the name begins under which package atomicfile writes a file.
func halfOf(file string) string { return ".new-" + filepath.Base(file) + "-" }

func sweepFolder(dir string, half func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for half-written files: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() || !half(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove half-written file: %w", err))
		}
	}
	return errors.Join(errs...)
}
