package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	if err := errors.Join(os.MkdirAll(at("disk/mote"), 0o755), os.Symlink(at("disk/mote"), at("folder")),
		os.Symlink("disk", at("above")), os.Symlink(at("folder"), at("twice")),
		os.Symlink(at("unmounted/mote"), at("dangling")), os.Symlink("loop", at("loop")),
		os.WriteFile(at("file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want, refused string }{
		{"itself", at("disk/mote"), at("disk/mote"), ""},
		{"the folder is a link", at("folder"), at("disk/mote"), ""},
		{"a link to a link", at("twice"), at("disk/mote"), ""},
		{"with a slash at the end", at("folder") + "/", at("disk/mote"), ""},
		{"behind a link", at("above/mote"), at("disk/mote"), ""},
		{"behind a link, not there yet", at("above/new/mote"), at("disk/new/mote"), ""},
		{"a link that leads nowhere", at("dangling"), "", at("unmounted/mote")},
		{"behind a link that leads nowhere", at("dangling/data"), "", at("unmounted/mote")},
		{"a link to itself, left to who opens it", at("loop"), at("loop"), ""},
		{"below a file, left to who opens it", at("file/mote"), at("file/mote"), ""},
		{"not from the root, left to who checks it", "folder", "folder", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Resolve(test.path)
			if got != test.want || (err != nil) != (test.refused != "") {
				t.Fatalf("%s, %v, want %s", got, err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), test.refused) {
				t.Errorf("error %q does not name %s", err, test.refused)
			}
		})
	}
}
