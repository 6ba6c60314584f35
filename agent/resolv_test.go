package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

var clusterDNS = netip.MustParseAddr("10.43.0.10")

// podResolversOf returns the resolvers of pods on a host with these files.
func podResolversOf(t *testing.T, sources ...string) podResolvers {
	t.Helper()
	p := newPodResolvers(filepath.Join(t.TempDir(), "resolv.conf"), "", []netip.Addr{clusterDNS}, nil)
	p.sources = sources
	return p
}

func put(t *testing.T, file, text string) string {
	t.Helper()
	// As network managers do it: the new file takes the old one's place.
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	return file
}

// written lists the lines that are no comments.
func (p podResolvers) written(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(p.file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, ", ")
}

func TestPodResolvers_Write(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"no search domains", "search home.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n",
			"nameserver 192.0.2.1, nameserver 2001:db8::1"},
		{"a stub on loopback leads to the next file", "nameserver 127.0.0.53\noptions edns0\n",
			"nameserver 192.0.2.53"},
		{"the cluster's own DNS is left out", "nameserver 10.43.0.10\nnameserver 192.0.2.1\n", "nameserver 192.0.2.1"},
		{"at most three, as libc takes",
			"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
			"nameserver 192.0.2.1, nameserver 192.0.2.2, nameserver 192.0.2.3"},
		{"nonsense", "nameserver\nnameserver home\n# nameserver 192.0.2.1\n", "nameserver 192.0.2.53"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			p := podResolversOf(t, put(t, filepath.Join(dir, "resolv.conf"), row.text),
				put(t, filepath.Join(dir, "systemd"), "nameserver 192.0.2.53\n"))
			changed, err := p.write()
			if err != nil || !changed || p.written(t) != row.want {
				t.Errorf("wrote %q, changed %v, %v; want %q", p.written(t), changed, err, row.want)
			}
			if changed, err := p.write(); err != nil || changed {
				t.Errorf("written again: changed %v, %v", changed, err)
			}
		})
	}
}

func TestPodResolvers_Follow_HearsOfChanges(t *testing.T) {
	dir := t.TempDir()
	link, later := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "run", "resolve", "resolv.conf")
	p := podResolversOf(t, link, later)
	if _, err := p.write(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.follow(ctx, zap.NewNop()) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	until := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); p.written(t) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("pods get %q, want %q", p.written(t), want)
			}
		}
	}
	// A folder that is not there yet, a file in it, and a link that leads away.
	if err := os.MkdirAll(filepath.Dir(later), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, later, "nameserver 192.0.2.1\n")
	until("nameserver 192.0.2.1")
	put(t, link, "nameserver 192.0.2.2\n")
	until("nameserver 192.0.2.2")
	elsewhere := put(t, filepath.Join(t.TempDir(), "managed"), "nameserver 192.0.2.3\n")
	if err := os.Symlink(elsewhere, link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	until("nameserver 192.0.2.3")
	put(t, elsewhere, "nameserver 192.0.2.4\n")
	until("nameserver 192.0.2.4")
}

// A process that is out of file descriptors must not take the resolvers from pods.
func TestPodResolvers_Write_UnreadableSource_KeepsTheFile(t *testing.T) {
	dir := t.TempDir()
	source := put(t, filepath.Join(dir, "resolv.conf"), "nameserver 192.0.2.1\n")
	p := podResolversOf(t, source)
	if changed, err := p.write(); !changed || err != nil {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := p.write(); changed || err != nil {
		t.Errorf("changed %v, %v; want the file to stay", changed, err)
	}
	if _, err := p.update(); !errors.Is(err, errSources) {
		t.Errorf("error is %v, want the cause", err)
	}
	if got := p.written(t); got != "nameserver 192.0.2.1" {
		t.Errorf("pods get %q", got)
	}
}

// Pods with the host's DNS never get a file without resolvers where this node answers DNS: libc
// takes such a file for one that names the pod's own loopback.
func TestPodResolvers_Write_NoReachableResolver(t *testing.T) {
	for _, row := range []struct{ name, text, want, note string }{
		{"a stub on 127.0.0.1", "nameserver 127.0.0.1\n", "nameserver 10.43.0.10", "(127.0.0.1)"},
		{"a stub on ::1", "nameserver ::1\n", "nameserver 10.43.0.10", "(::1)"},
		{"systemd's stub, without its other file", "nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.43.0.10",
			"(127.0.0.53)"},
		{"the cluster's own DNS", "nameserver 10.43.0.10\n", "nameserver 10.43.0.10", "(10.43.0.10)"},
		{"no name server", "search home.example\n", "nameserver 10.43.0.10", "no resolver"},
		{"one that can be reached beside a stub", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n",
			"nameserver 192.0.2.1", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := podResolversOf(t, put(t, filepath.Join(t.TempDir(), "resolv.conf"), row.text))
			p.standIn = []netip.Addr{clusterDNS}
			if _, err := p.write(); err != nil || p.written(t) != row.want {
				t.Errorf("wrote %q, %v; want %q", p.written(t), err, row.want)
			}
			if note := p.note(); note != "" {
				t.Errorf("note is %q although the cluster's DNS stands in", note)
			}
			// A node with --disable dns has nothing that could stand in, and says so.
			p.standIn = nil
			if note := p.note(); !strings.Contains(note, row.note) || (note == "") != (row.note == "") ||
				(note != "" && !strings.Contains(note, "--resolv-conf")) {
				t.Errorf("note is %q, want one about %q", note, row.note)
			}
		})
	}
}

func TestPodResolvers_Write_GivenFile_PassesSearchDomainsOn(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct{ name, text, want string }{
		{"search domains and options", "nameserver 192.0.2.1\nsearch home.example lan\noptions ndots:2 edns0\n",
			"nameserver 192.0.2.1, search home.example lan, options ndots:2 edns0"},
		{"domain", "nameserver 192.0.2.1\ndomain home.example\n", "nameserver 192.0.2.1, search home.example"},
		{"without", "nameserver 192.0.2.1\n", "nameserver 192.0.2.1"},
		{"a stub's search domains with the cluster's DNS", "nameserver 127.0.0.1\nsearch home.example\n",
			"nameserver 10.43.0.10, search home.example"},
	} {
		given := put(t, filepath.Join(dir, "given"), row.text)
		p := newPodResolvers(filepath.Join(dir, "resolv.conf"), given, []netip.Addr{clusterDNS},
			[]netip.Addr{clusterDNS})
		p.sources = p.sources[:1] // the other one is this machine's
		if _, err := p.write(); err != nil || p.written(t) != row.want {
			t.Errorf("%s: wrote %q, %v; want %q", row.name, p.written(t), err, row.want)
		}
	}
}
