package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A mote that was killed between start and ready leaves files that had no name yet. The next start
// removes them, and nothing that is called like them where others write too.
func TestDir_Commit_RemovesHalfWrittenFiles(t *testing.T) {
	root := t.TempDir()
	path, etc := filepath.Join(root, "data"), filepath.Join(root, "etc")
	p := At(path)
	a := p.Agent()
	at := filepath.Join
	half := []string{at(path, ".new-1"), at(path, ".new-version-1"), at(path, ".mote-check-1"),
		at(p.Server(), ".new-2"), at(p.TLS(), ".new-ca.key-3"), at(a.Dir(), ".new-4"), at(a.Identity(), ".new-5"),
		at(a.Runtime(), ".new-6"), at(a.CNI(), ".mote-7.tmp"), at(a.Imported(), ".stdin-8.tar"),
		at(etc, ".new-kubeconfig.yaml-9")}
	stays := []string{at(p.TLS(), "ca.key"), at(a.Images(), "app.tar"), at(a.Kubelet(), ".new-1"), at(etc, ".new-1"),
		at(etc, ".new-other-1"), at(etc, "kubeconfig.yaml"), at(a.Dir(), "new-1"),
		at(path, ".mote-notes"), at(a.Images(), ".stdin-1")}
	for _, file := range append(slices.Clone(half), stays...) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// No file is called so, and a folder may be somebody's.
	if err := os.Mkdir(at(path, ".new-folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	stays = append(stays, at(path, ".new-folder"))
	d, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.RecordOutside(at(etc, "kubeconfig.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(now); err != nil {
		t.Fatal(err)
	}
	for _, file := range half {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", file, err)
		}
	}
	for _, file := range stays {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("removed what is no half-written file: %v", err)
		}
	}
}
