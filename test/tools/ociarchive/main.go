package main

import (
	"archive/tar"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const usage = `usage: ociarchive -o FILE -name REFERENCE [option ...]

Options are read in order; -layer starts a new layer for those that follow it.

`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ociarchive:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	im := &image{layers: []*layer{newLayer()}}
	fs := flag.NewFlagSet("ociarchive", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	out := fs.String("o", "", "archive to write")
	last := func() *layer { return im.layers[len(im.layers)-1] }

	fs.Func("name", "full reference such as docker.io/library/app:1.0; may be repeated", func(s string) error {
		im.names = append(im.names, s)
		return nil
	})
	fs.BoolFunc("layer", "start a new layer", func(string) error {
		im.layers = append(im.layers, newLayer())
		return nil
	})
	fs.Func("file", "SRC:DST[:MODE] puts a file of this machine into the image", func(s string) error {
		src, dst, mode, err := splitMapping(s)
		if err != nil {
			return err
		}
		return last().addFile(src, dst, mode)
	})
	fs.Func("text", "DST=TEXT writes a small file; \\n ends a line", func(s string) error {
		dst, text, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("want DST=TEXT, got %q", s)
		}
		data := []byte(strings.ReplaceAll(text, `\n`, "\n"))
		return last().add(entry{
			name: dst,
			kind: tar.TypeReg,
			mode: 0o644,
			data: data,
		})
	})
	fs.Func("dir", "PATH[:MODE] makes a folder", func(s string) error {
		name, mode, err := splitMode(s, 0o755)
		if err != nil {
			return err
		}
		return last().add(entry{name: name, kind: tar.TypeDir, mode: mode})
	})
	fs.Func("link", "NAME:TARGET makes a symbolic link", func(s string) error {
		name, target, ok := strings.Cut(s, ":")
		if !ok {
			return fmt.Errorf("want NAME:TARGET, got %q", s)
		}
		return last().add(entry{
			name:   name,
			kind:   tar.TypeSymlink,
			mode:   0o777,
			target: target,
		})
	})
	fs.Func("tree", "DIR puts everything below a folder of this machine at the image's root", func(s string) error {
		return last().addTree(s)
	})
	fs.Func("busybox", "PATH of a static busybox: it and a link for each of its applets", func(s string) error {
		return addBusybox(last(), s)
	})
	fs.Func("env", "NAME=VALUE; may be repeated", func(s string) error {
		im.config.Env = append(im.config.Env, s)
		return nil
	})
	fs.Func("entrypoint", "one word of the entry point; may be repeated", func(s string) error {
		im.config.Entrypoint = append(im.config.Entrypoint, s)
		return nil
	})
	fs.Func("cmd", "one word of the default arguments; may be repeated", func(s string) error {
		im.config.Cmd = append(im.config.Cmd, s)
		return nil
	})
	fs.Func("expose", "PORT/PROTOCOL the program listens on; may be repeated", func(s string) error {
		if im.config.ExposedPorts == nil {
			im.config.ExposedPorts = map[string]struct{}{}
		}
		im.config.ExposedPorts[s] = struct{}{}
		return nil
	})
	fs.StringVar(&im.config.User, "user", "", "user the program runs as, UID[:GID]")
	fs.StringVar(&im.config.WorkingDir, "workdir", "", "folder the program starts in")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *out == "" || len(im.names) == 0 || fs.NArg() > 0 {
		return fmt.Errorf("want -o FILE and at least one -name, and nothing but options")
	}
	return save(im, *out)
}

// save writes beside the target and renames, so that an interrupted run leaves no half archive
// under a name that is used.
func save(im *image, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder for the archive: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".ociarchive-*")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer os.Remove(f.Name())
	if err := im.write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		return fmt.Errorf("set mode of archive: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close archive: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("name archive: %w", err)
	}
	return nil
}

// addBusybox asks the binary itself which applets it has and where they belong.
func addBusybox(l *layer, bin string) error {
	list, err := exec.Command(bin, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list applets of %s: %w", bin, err)
	}
	if err := l.addFile(bin, "bin/busybox", 0o755); err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet == "bin/busybox" {
			continue
		}
		if err := l.add(entry{
			name:   applet,
			kind:   tar.TypeSymlink,
			mode:   0o777,
			target: "/bin/busybox",
		}); err != nil {
			return err
		}
	}
	return nil
}

func splitMapping(s string) (src, dst string, mode int64, err error) {
	src, rest, ok := strings.Cut(s, ":")
	if !ok {
		return "", "", 0, fmt.Errorf("want SRC:DST[:MODE], got %q", s)
	}
	dst, mode, err = splitMode(rest, 0)
	return src, dst, mode, err
}

func splitMode(s string, unset int64) (string, int64, error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return name, unset, nil
	}
	mode, err := strconv.ParseInt(text, 8, 64)
	if err != nil {
		return "", 0, fmt.Errorf("read octal mode %q: %w", text, err)
	}
	return name, mode, nil
}
