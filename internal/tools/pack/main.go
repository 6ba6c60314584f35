package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/image/ociarchive"
)

func main() {
	bin := flag.String("bin", "", "folder with the built executables")
	pause := flag.String("pause", "", "the pause program")
	out := flag.String("out", "", "folder to write bundle.json and bundle.tar.zst to")
	flag.Parse()
	if err := pack(*bin, *pause, *out); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(bin, pause, out string) error {
	entries, err := os.ReadDir(bin)
	if err != nil {
		return fmt.Errorf("list tools: %w", err)
	}
	files := map[string][]byte{}
	var names []string
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(bin, e.Name()))
		if err != nil {
			return fmt.Errorf("read tool: %w", err)
		}
		files[e.Name()] = data
		names = append(names, e.Name())
	}
	sort.Strings(names)

	program, err := os.ReadFile(pause)
	if err != nil {
		return fmt.Errorf("read pause program: %w", err)
	}
	// The tag names the content: a changed pause program is another image.
	image := "localhost/mote/pause:" + hash(program)[:12]
	var archive bytes.Buffer
	if err := ociarchive.Write(&archive, ociarchive.Image{
		Name:       image,
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
		Files:      []ociarchive.File{{Name: "pause", Mode: 0o755, Content: program}},
	}); err != nil {
		return err
	}
	files[bundle.PauseArchive] = archive.Bytes()
	names = append(names, bundle.PauseArchive)

	manifest := bundle.Manifest{PauseImage: image, WindowLog: bundle.WindowLog}
	var solid bytes.Buffer
	tw := tar.NewWriter(&solid)
	for _, name := range names {
		mode := int64(0o755)
		if name == bundle.PauseArchive {
			mode = 0o644
		}
		data := files[name]
		manifest.Files = append(manifest.Files, bundle.File{
			Name:   name,
			Mode:   uint32(mode),
			Size:   int64(len(data)),
			SHA256: hash(data),
		})
		if err := tw.WriteHeader(&tar.Header{
			Name:    name,
			Mode:    mode,
			Size:    int64(len(data)),
			ModTime: time.Unix(0, 0),
		}); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		if _, err := tw.Write(data); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("finish tar: %w", err)
	}
	manifest.Hash = hash(solid.Bytes())

	for _, f := range manifest.Files {
		fmt.Printf("bundle: %12d  %s\n", f.Size, f.Name)
	}
	// Compressing takes longer than all the rest, and the tools are built to the same bytes from
	// the same sources.
	if upToDate(out, manifest) {
		fmt.Println("bundle: nothing changed")
		return nil
	}
	compressed, err := compress(solid.Bytes())
	if err != nil {
		return err
	}
	doc, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, bundle.ArchiveName), compressed, 0o644); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, bundle.ManifestName), append(doc, '\n'), 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	fmt.Printf("bundle: %12d  together, %d compressed\n", solid.Len(), len(compressed))
	return nil
}

// upToDate reports whether the folder holds this very bundle already.
func upToDate(out string, m bundle.Manifest) bool {
	old, err := bundle.ReadManifest()
	if err != nil || old.Hash != m.Hash || old.WindowLog != m.WindowLog || old.PauseImage != m.PauseImage {
		return false
	}
	_, err = os.Stat(filepath.Join(out, bundle.ArchiveName))
	return err == nil
}

// compress prefers the zstd tool, whose highest levels Go's encoder does not have; the decoder
// reads both.
func compress(data []byte) ([]byte, error) {
	if tool, err := exec.LookPath("zstd"); err == nil {
		cmd := exec.Command(tool, "--ultra", "-22", fmt.Sprintf("--zstd=wlog=%d", bundle.WindowLog), "--no-check",
			"-T1", "-c", "-q")
		cmd.Stdin = bytes.NewReader(data)
		cmd.Stderr = os.Stderr
		compressed, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("run zstd: %w", err)
		}
		return compressed, nil
	}
	fmt.Fprintln(os.Stderr,
		"pack: the zstd tool is missing (apt-get install zstd): the bundle will be larger than it could be")
	var buf bytes.Buffer
	enc, err := zstd.NewWriter(&buf, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(1<<bundle.WindowLog))
	if err != nil {
		return nil, fmt.Errorf("set up zstd: %w", err)
	}
	if _, err := io.Copy(enc, bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("compress bundle: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("compress bundle: %w", err)
	}
	return buf.Bytes(), nil
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
