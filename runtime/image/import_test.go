package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/image"
	"github.com/mote-dev/mote/runtime/image/ociarchive"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/runtimetest"
)

// smallImage is an image of a few bytes; salt makes its content its own.
func smallImage(name, salt string) ociarchive.Image {
	return ociarchive.Image{Name: name, Entrypoint: []string{"/x"},
		Files: []ociarchive.File{{Name: "x", Mode: 0o755, Content: []byte(strings.Repeat(salt+"\n", 500))}}}
}

func archiveOf(t *testing.T, img ociarchive.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := ociarchive.Write(&buf, img); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// entry is a file of a tar put together by a test.
type entry struct {
	name string
	data []byte
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{
			Name:     e.name,
			Mode:     0o644,
			Size:     int64(len(e.data)),
			Typeflag: tar.TypeReg,
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// untar lists the files of an archive, so that tests can leave one out.
func untar(t *testing.T, data []byte) []entry {
	t.Helper()
	var entries []entry
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err != nil {
			return entries
		}
		var buf bytes.Buffer
		if _, err := buf.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{h.Name, buf.Bytes()})
	}
}

// dockerArchive is what `docker save` writes.
func dockerArchive(t *testing.T, name string, harm func(config, layer []byte) ([]byte, []byte)) []byte {
	t.Helper()
	layer := tarOf(t, entry{"y", []byte("docker " + name)})
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"/y"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		t.Fatal(err)
	}
	configSum := sha256.Sum256(config)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	if harm != nil {
		config, layer = harm(config, layer)
	}
	manifest, err := json.Marshal(
		[]map[string]any{{"Config": configName, "RepoTags": []string{name}, "Layers": []string{"abc/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, entry{configName, config}, entry{"abc/layer.tar", layer}, entry{"manifest.json", manifest})
}

// badArchives are files `mote image import` must refuse, with a word its error must contain.
func badArchives(t *testing.T) map[string]struct {
	data []byte
	want string
} {
	good := archiveOf(t, smallImage("docker.io/library/bad:1", "bad"))
	parts := untar(t, good)
	without := func(i int) []byte { return tarOf(t, slices.Delete(slices.Clone(parts), i, i+1)...) }
	swapped := bytes.Replace(good, []byte("bad\nbad\nbad\n"), []byte("bad\nBAD\nbad\n"), 1)
	other := smallImage("docker.io/library/bad:1", "bad")
	other.Architecture = "s390x"
	type bad = struct {
		data []byte
		want string
	}
	return map[string]bad{
		"empty":                   {nil, "empty"},
		"text":                    {[]byte(strings.Repeat("this is no archive\n", 100)), "tar"},
		"an empty tar":            {tarOf(t), "no files"},
		"a tar of something else": {tarOf(t, entry{"etc/passwd", []byte("root")}), "neither"},
		"cut":                     {good[:len(good)/2], "EOF"},
		"cut gzip":                {gzipped(t, good)[:200], "EOF"},
		"xz":                      {append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, good...), "xz -d"},
		"no index":                {without(1), "index.json"},
		"no manifest":             {without(2), "missing"},
		"no config":               {without(3), "missing"},
		"no layer":                {without(4), "missing"},
		"damaged layer":           {swapped, "damaged"},
		"other machine":           {archiveOf(t, other), "s390x"},
		"no name":                 {archiveOf(t, smallImage("", "bad")), "no names"},
		"docker, damaged layer": {dockerArchive(t, "bad:1", func(c, l []byte) ([]byte, []byte) {
			return c, bytes.Replace(l, []byte("docker"), []byte("DOCKER"), 1)
		}), "damaged"},
		"docker, damaged config": {dockerArchive(t, "bad:1", func(c, l []byte) ([]byte, []byte) {
			return bytes.Replace(c, []byte("/y"), []byte("/z"), 1), l
		}), "damaged"},
	}
}

func thisPlatform() v1.Platform { return platforms.Normalize(platforms.DefaultSpec()) }

// content lists the blobs on disk, the leases and the images of a node.
func content(t *testing.T, n runtimetest.Node) (blobs []string, images []image.Info) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(n.Config.DataDir, "containerd/io.containerd.content.v1.content/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(n.Config.DataDir,
		"containerd/io.containerd.content.v1.content/blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	images, err = image.List(t.Context(), n.Config.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	return append(blobs, more...), images
}

func names(list []image.Info) []string {
	var out []string
	for _, i := range list {
		out = append(out, i.Name)
	}
	return out
}

func TestImport(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.Config)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	options := image.ImportOptions{AgentDir: n.Config.DataDir}

	t.Run("refused", func(t *testing.T) {
		blobsBefore, imagesBefore := content(t, n)
		for name, bad := range badArchives(t) {
			t.Run(name, func(t *testing.T) {
				_, err := image.Import(ctx, write("bad.tar", bad.data), options)
				if !errors.Is(err, image.ErrNotAnImage) || !strings.Contains(err.Error(), bad.want) {
					t.Errorf("error is %v, want one about %q", err, bad.want)
				}
				blobs, images := content(t, n)
				if !slices.Equal(blobs, blobsBefore) || !slices.Equal(images, imagesBefore) {
					t.Errorf("something was imported: %v, %v", blobs, names(images))
				}
			})
		}
		if _, err := image.Import(ctx, dir, options); !errors.Is(err, image.ErrNotAnImage) {
			t.Errorf("a folder gave %v", err)
		}
		if _, err := image.Import(ctx, filepath.Join(dir, "none"), options); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no file gave %v", err)
		}
	})

	plain := archiveOf(t, smallImage("docker.io/library/plain:1", "plain"))
	mine := platforms.Format(thisPlatform())
	good := map[string][]byte{
		// The index lists platforms whose blobs are missing.
		"docker.io/library/one:1": image.OnePlatform("docker.io/library/one:1",
			[]string{"linux/386", "linux/arm/v7", mine, "unknown/unknown"}, []string{mine}),
		"docker.io/library/plain:1":  plain,
		"docker.io/library/gzip:1":   gzipped(t, archiveOf(t, smallImage("gzip:1", "gzip"))),
		"example.com/a/zstd:1":       zstded(t, archiveOf(t, smallImage("example.com/a/zstd:1", "zstd"))),
		"docker.io/library/docker:1": dockerArchive(t, "docker:1", nil),
	}
	for i, m := range image.Makers {
		name := fmt.Sprintf("example.com/made:%d", i)
		good[name] = m.Archive(name, thisPlatform(), nil)
	}
	for name, data := range good {
		var last, total int64
		o := options
		o.Progress = func(d, of int64) { last, total = d, of }
		got, err := image.Import(ctx, write("good.tar", data), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(got, []string{name}) {
			t.Errorf("imported %v, want %s", got, name)
		}
		if last != total || total != 2*int64(len(data)) {
			t.Errorf("%s: progress ended at %d of %d", name, last, total)
		}
	}
	if _, err := image.ImportFrom(ctx, bytes.NewReader(plain), options); err != nil {
		t.Errorf("import from a stream, a second time: %v", err)
	}
	checkImported(ctx, t, n, good)

	child.Kill()
	if err := os.Truncate(filepath.Join(n.Paths().Root, layout.MetadataDB), 0); err != nil {
		t.Fatal(err)
	}
	child = runtimetest.Start(t, n.Config)
	checkImported(ctx, t, n, good)

	if err := image.Remove(ctx, n.Config.DataDir, "nothing:1"); !errors.Is(err, image.ErrNoImage) {
		t.Errorf("removing what is not there gave %v", err)
	}
	for name := range good {
		if err := image.Remove(ctx, n.Config.DataDir, name); err != nil {
			t.Error(err)
		}
	}
	kept, err := filepath.Glob(filepath.Join(n.Config.DataDir, "images/imported/*"))
	if err != nil || len(kept) > 0 {
		t.Errorf("archives are left: %v, %v", kept, err)
	}
	child.Stop()
	child = runtimetest.Start(t, n.Config)
	if _, images := content(t, n); len(images) != 2 {
		t.Errorf("images after removal and restart: %v", names(images))
	}
	child.Stop()
	if _, err := image.List(ctx, n.Config.DataDir); !errors.Is(err, image.ErrNotRunning) {
		t.Errorf("list without a runtime gave %v", err)
	}
}

// checkImported checks the images as the kubelet sees them.
func checkImported(ctx context.Context, t *testing.T, n runtimetest.Node, good map[string][]byte) {
	t.Helper()
	_, images := content(t, n)
	for name := range good {
		if !slices.Contains(names(images), name) {
			t.Errorf("%s is not listed: %v", name, names(images))
		}
	}
	c := n.Dial(t)
	list, err := c.Images.ListImages(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name := range good {
		found := false
		for _, img := range list {
			if !slices.Contains(img.RepoTags, name) {
				continue
			}
			found = true
			if !img.Pinned {
				t.Errorf("%s is not pinned", name)
			}
			if len(img.RepoDigests) == 0 {
				t.Errorf("%s has no digest to ask for it by", name)
			}
		}
		if !found {
			t.Errorf("the kubelet does not see %s", name)
		}
	}
}

// TestImport_ByHelper runs the bundled ctr against a running runtime.
func TestImport_ByHelper(t *testing.T) {
	n := runtimetest.NewNode(t)
	child := runtimetest.Start(t, n.Config)
	helper := filepath.Join(filepath.Dir(n.Config.DataDir), "bin/current/mote-helper")
	if _, err := os.Stat(helper); err != nil {
		t.Skip("the bundle was built without the helper")
	}
	start := time.Now()
	out, err := exec.CommandContext(t.Context(), helper, "ctr", "-a", n.Paths().Socket, "-n", "k8s.io", "images", "ls",
		"-q").CombinedOutput()
	if err != nil || !strings.Contains(string(out), runtimetest.BusyboxImage) {
		t.Errorf("ctr gave %v: %s", err, out)
	}
	t.Logf("ctr took %s", time.Since(start))
	start = time.Now()
	out, err = exec.CommandContext(t.Context(), helper, "kubectl", "version", "--client").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "v1.37.2") {
		t.Errorf("kubectl gave %v: %s", err, out)
	}
	t.Logf("kubectl took %s", time.Since(start))
	child.Stop()
}

// largeImage has content that no compression and no sharing shortens.
func largeImage(t *testing.T, name string, size int) ociarchive.Image {
	t.Helper()
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	return ociarchive.Image{Name: name, Files: []ociarchive.File{{Name: "large", Content: content}}}
}

// TestImport_CutShort kills the runtime while an archive is being written to its content. The next
// start must drop what came of it.
func TestImport_CutShort(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.Config)
	blobsBefore, _ := content(t, n)
	file := filepath.Join(t.TempDir(), "large.tar")
	if err := ociarchive.WriteFile(file, largeImage(t, "example.com/large:1", 128<<20)); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := image.Import(ctx, file, image.ImportOptions{AgentDir: n.Config.DataDir})
		failed <- err
	}()
	ingest := filepath.Join(n.Config.DataDir, "containerd/io.containerd.content.v1.content/ingest/*")
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if found, _ := filepath.Glob(ingest); len(found) > 0 {
			break
		}
		select {
		case <-tick.C:
		case err := <-failed:
			t.Fatalf("import ended before the runtime was killed: %v", err)
		}
	}
	child.Kill()
	if err := <-failed; !errors.Is(err, image.ErrNotRunning) {
		t.Fatalf("import gave %v when the runtime was killed", err)
	}
	child = runtimetest.Start(t, n.Config)
	if found, _ := filepath.Glob(ingest); len(found) > 0 {
		t.Errorf("half-written content is left: %v", found)
	}
	blobs, images := content(t, n)
	if len(blobs) != len(blobsBefore) || len(images) != 2 {
		t.Errorf("%d blobs and %d images, want %d and 2", len(blobs), len(images), len(blobsBefore))
	}
	child.Stop()
}

// TestImport_DiskFull runs over a disk with too little room for an image: one that is large itself,
// and a small one that unpacks to more than there is.
func TestImport_DiskFull(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	disk := filepath.Join(n.Config.DataDir, "containerd")
	if err := os.MkdirAll(disk, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	child := runtimetest.Start(t, n.Config)
	blobsBefore, _ := content(t, n)
	file := filepath.Join(t.TempDir(), "large.tar")
	if err := ociarchive.WriteFile(file, largeImage(t, "example.com/large:1", 40<<20)); err != nil {
		t.Fatal(err)
	}
	options := image.ImportOptions{AgentDir: n.Config.DataDir}
	if _, err := image.Import(ctx, file, options); !errors.Is(err, image.ErrNoRoom) ||
		!strings.Contains(err.Error(), disk) {
		t.Errorf("import to a full disk gave %v", err)
	}
	checkNothingImported := func(t *testing.T) {
		t.Helper()
		blobs, images := content(t, n)
		for _, b := range blobs {
			if !slices.Contains(blobsBefore, b) {
				t.Errorf("content is left: %s", b)
			}
		}
		if len(images) != 2 {
			t.Errorf("images are %v", names(images))
		}
	}
	checkNothingImported(t)

	bomb := image.NewArchive()
	large := bomb.AddImage(thisPlatform(), image.LargeLayer(192<<20), image.Gzip)
	bomb.AddIndex(image.Named(large, "example.com/bomb:1"))
	if err := os.WriteFile(file, bomb.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() > 1<<20 {
		t.Fatalf("%v: the bomb is large itself: %v", err, info.Size())
	}
	if _, err := image.Import(ctx, file, options); !errors.Is(err, image.ErrNoRoom) {
		t.Errorf("import of a small archive with a large layer gave %v", err)
	}
	checkNothingImported(t)

	c := n.Dial(t)
	if err := n.RunOne(ctx, c, "after"); err != nil {
		t.Errorf("no pod runs after the disk was full: %v", err)
	}
	child.Stop()
	// Not containerd's mount: clean-up would keep it.
	if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
}
