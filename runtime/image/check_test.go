package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"maps"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func planOf(data []byte, machine string) (archivePlan, error) {
	p, err := platforms.Parse(machine)
	check(err)
	return checkArchive(bytes.NewReader(data), platforms.Only(p), math.MaxInt64)
}

// The best image of an index is taken, and only that must be there: tools that save one platform
// keep the index of all.
func TestCheckArchive_OnePlatform(t *testing.T) {
	all := []string{"linux/386", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "windows/amd64",
		"unknown/unknown"}
	for _, row := range []struct {
		name, machine string
		lists, holds  []string
		want          string // of the error, or none
	}{
		{"amd64 beside 386", "linux/amd64", all, []string{"linux/amd64"}, ""},
		{"arm64 beside 32-bit arm", "linux/arm64", all, []string{"linux/arm64/v8"}, ""},
		{"arm64 v8.2 takes v8", "linux/arm64/v8.2", all, []string{"linux/arm64/v8"}, ""},
		{"arm v7 beside v6", "linux/arm/v7", all, []string{"linux/arm/v7"}, ""},
		{"arm v6 beside v7", "linux/arm/v6", all, []string{"linux/arm/v6"}, ""},
		{"arm v8 takes v7", "linux/arm/v8", all, []string{"linux/arm/v7"}, ""},
		{"all are there", "linux/amd64", all, all, ""},
		{"386 alone on amd64", "linux/amd64", []string{"linux/386"}, []string{"linux/386"}, ""},
		{"arm v7 and v6 on arm64", "linux/arm64", []string{"linux/arm/v6", "linux/arm/v7"},
			[]string{"linux/arm/v7"}, ""},
		{"amd64 is missing, 386 is there", "linux/amd64", all, []string{"linux/386"}, "linux/amd64"},
		{"arm64 is missing, arm v7 is there", "linux/arm64", all, []string{"linux/arm/v7"}, "linux/arm64"},
		{"arm v7 is missing, v6 is there", "linux/arm/v7", all, []string{"linux/arm/v6"}, "linux/arm/v7"},
		{"another machine", "linux/s390x", all, all, "linux/386, linux/amd64, linux/arm/v6"},
		{"arm v7 on arm v6", "linux/arm/v6", []string{"linux/arm/v7"}, []string{"linux/arm/v7"},
			"it is for linux/arm/v7"},
	} {
		t.Run(row.name, func(t *testing.T) {
			plan, err := planOf(OnePlatform("example.com/app:1", row.lists, row.holds), row.machine)
			if row.want == "" && (err != nil || len(plan.images) != 1) {
				t.Errorf("plan is %v, error %v", plan, err)
			}
			if row.want != "" && (!errors.Is(err, ErrNotAnImage) || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error is %v, want one about %q", err, row.want)
			}
		})
	}
}

// An archive may list each platform with the name itself: the best of one name is taken.
func TestCheckArchive_PlatformsOfOneName(t *testing.T) {
	a := NewArchive()
	small := a.AddImage(v1.Platform{OS: "linux", Architecture: "386"}, LayerOf("386"), Gzip)
	large := a.AddImage(v1.Platform{OS: "linux", Architecture: "amd64"}, LayerOf("amd64"), Zstd)
	large.Platform = nil // its configuration has it
	only := a.AddImage(v1.Platform{OS: "linux", Architecture: "386"}, LayerOf("only 386"), Plain)
	a.AddIndex(Named(large, "app:1"), Named(small, "app:1"), Named(only, "old:1"))
	plan, err := planOf(a.Bytes(), "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	if plan.images["docker.io/library/app:1"] != large.Digest || plan.images["docker.io/library/old:1"] != only.Digest {
		t.Errorf("plan is %v", plan.images)
	}
}

// An image without a name beside named ones is reported; attestations are not images.
func TestCheckArchive_Unnamed(t *testing.T) {
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	a := NewArchive()
	named := a.AddImage(amd64, LayerOf("named"), Gzip)
	nameless := a.AddImage(amd64, LayerOf("nameless"), Gzip)
	attestation := a.AddImage(v1.Platform{OS: "unknown", Architecture: "unknown"}, LayerOf("attestation"), nil)
	tagged := a.AddImage(amd64, LayerOf("tagged"), Gzip)
	tagged.Annotations = map[string]string{v1.AnnotationRefName: "1.4"}
	a.AddIndex(Named(named, "app:1"), nameless, attestation, tagged)
	plan, err := planOf(a.Bytes(), "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{nameless.Digest.String(), tagged.Digest.String()}; !slices.Equal(plan.unnamed, want) {
		t.Errorf("unnamed are %q, want %q", plan.unnamed, want)
	}
	if names := slices.Collect(maps.Keys(plan.images)); !slices.Equal(names, []string{"docker.io/library/app:1"}) {
		t.Errorf("named are %q", names)
	}
}

// The digest of the unpacked layer is what counts, whatever a tool calls and compresses its files.
func TestCheckArchive_DockerLayout_OfAllMakers(t *testing.T) {
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	for _, m := range Makers {
		t.Run(m.Name, func(t *testing.T) {
			if _, err := planOf(m.Archive("app:1", amd64, nil), "linux/amd64"); err != nil {
				t.Error(err)
			}
			for name, harm := range map[string]func([]byte) []byte{
				"changed":       func(l []byte) []byte { return m.Pack(LayerOf("something else")) },
				"cut":           func(l []byte) []byte { return l[:len(l)-5] },
				"garbled":       func(l []byte) []byte { l = bytes.Clone(l); l[len(l)/2] ^= 0xff; return l },
				"empty":         func([]byte) []byte { return nil },
				"packed header": func(l []byte) []byte { return l[:3] },
			} {
				if m.Pack(nil) == nil && name == "cut" {
					continue // a tar may lack some of its last zeros, but then its digest differs: see "changed"
				}
				_, err := planOf(m.Archive("app:1", amd64, harm), "linux/amd64")
				if !errors.Is(err, ErrNotAnImage) || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("%s layer gave %v", name, err)
				}
			}
		})
	}
}

// What a Docker manifest may and may not say.
func TestCheckArchive_DockerLayout_Manifest(t *testing.T) {
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	layer := LayerOf("x")
	other := append(LayerOf("{y}"), 0) // its own digest
	jsonLike := func() []byte {
		a := NewArchive()
		a.Add("[", []byte("the program of that name"))
		return a.Bytes()
	}()
	type object = map[string]any
	for _, row := range []struct {
		name     string
		manifest any
		want     string // of the error, or none
	}{
		{"tags null", []object{{"Config": "c.json", "RepoTags": nil, "Layers": []string{"l.tar"}}}, "no names"},
		{"tags null beside a named one", []object{
			{"Config": "c.json", "RepoTags": nil, "Layers": []string{"l.tar"}},
			{"Config": "d.json", "RepoTags": []string{"app:1"}, "Layers": []string{"m.tar"}},
		}, ""},
		{"a tag twice: the last counts", []object{
			{"Config": "c.json", "RepoTags": []string{"app:1", "app:1"}, "Layers": []string{"l.tar"}},
			{"Config": "d.json", "RepoTags": []string{"app:1"}, "Layers": []string{"m.tar"}},
		}, ""},
		{"a layer that begins like JSON", []object{
			{"Config": "e.json", "RepoTags": []string{"app:1"}, "Layers": []string{"n.tar"}}}, ""},
		{"a file outside", []object{
			{"Config": "../c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"l.tar"}}}, "outside of the"},
		{"a file from the root", []object{
			{"Config": "/c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"l.tar"}}}, "outside of the"},
		{"a loop of links", []object{
			{"Config": "c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"loop"}}}, "loop, which is missing"},
		{"a link to the host", []object{
			{"Config": "c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"host"}}}, "host, which is missing"},
		{"a large configuration", []object{
			{"Config": "large.json", "RepoTags": []string{"app:1"}, "Layers": []string{"l.tar"}}}, "most that is read"},
		{"a layer as configuration", []object{
			{"Config": "l.tar", "RepoTags": []string{"app:1"}, "Layers": []string{"l.tar"}}}, "is no JSON"},
		{"none", []object{}, "no names"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := NewArchive()
			a.Add("l.tar", layer)
			a.Add("m.tar", other)
			a.Add("n.tar", jsonLike)
			a.Link("loop", "pool")
			a.Link("pool", "loop")
			a.Link("host", "/etc/passwd")
			a.Add("c.json", configFor(amd64, layer))
			a.Add("d.json", append([]byte("\n"), configFor(amd64, other)...))
			a.Add("e.json", configFor(amd64, jsonLike))
			a.Add("large.json", append([]byte("{"), make([]byte, maxJSON)...))
			a.Add(dockerManifest, encode(row.manifest))
			plan, err := planOf(a.Bytes(), "linux/amd64")
			if row.want != "" {
				if !errors.Is(err, ErrNotAnImage) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("error is %v, want one about %q", err, row.want)
				}
				return
			}
			if err != nil || len(plan.images) != 1 {
				t.Fatalf("plan is %v, error %v", plan.images, err)
			}
			got := plan.images["docker.io/library/app:1"]
			last := digest.FromBytes(append([]byte("\n"), configFor(amd64, other)...))
			if strings.Contains(row.name, "last") && got != last {
				t.Errorf("%s is chosen", got)
			}
		})
	}
}

// OCI layouts as tools and tar write them.
func TestCheckArchive_OCI(t *testing.T) {
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	for _, row := range []struct {
		name   string
		make   func(a *Archive)
		rename func(string) string
		want   string // of the error, or none
	}{
		{"packed by tar", func(a *Archive) {
			a.AddIndex(Named(a.AddImage(amd64, LayerOf("x"), Zstd), "app:1"))
		}, dotted, ""},
		{"an index in an index, with an attestation", func(a *Archive) {
			m := a.AddImage(amd64, LayerOf("x"), Gzip)
			attestation := a.AddImage(v1.Platform{OS: "unknown", Architecture: "unknown"}, LayerOf("y"), Plain)
			inner := a.AddBlob(v1.MediaTypeImageIndex, encode(v1.Index{Manifests: []v1.Descriptor{attestation, m}}))
			outer := a.AddBlob(images.MediaTypeDockerSchema2ManifestList,
				encode(v1.Index{Manifests: []v1.Descriptor{inner}}))
			a.AddIndex(Named(outer, "app:1"))
		}, nil, ""},
		{"a hard link as a blob", func(a *Archive) {
			m := a.AddImage(amd64, LayerOf("x"), nil) // its type is gzip, its blob the plain layer
			packed := LayerOf("x")
			a.Add("layer", packed)
			check(a.tw.WriteHeader(&tar.Header{
				Name:     blobName(digest.FromBytes(packed)),
				Typeflag: tar.TypeLink,
				Linkname: "layer",
			}))
			a.AddIndex(Named(m, "app:1"))
		}, nil, ""},
		{"a folder", func(a *Archive) { a.AddIndex(Named(a.AddImage(amd64, LayerOf("x"), Zstd), "app:1")) },
			func(name string) string { return "layout/" + name }, "pack what is in the folder"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := NewArchive()
			a.rename = row.rename
			row.make(a)
			plan, err := planOf(a.Bytes(), "linux/amd64")
			if row.want == "" && (err != nil || len(plan.images) != 1) {
				t.Errorf("plan is %v, error %v", plan.images, err)
			}
			if row.want != "" && (!errors.Is(err, ErrNotAnImage) || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error is %v, want one about %q", err, row.want)
			}
		})
	}
}

// Layers are what their types say.
func TestCheckArchive_LayerTypes(t *testing.T) {
	plain := LayerOf("x")
	for _, row := range []struct {
		mediaType string
		pack      func([]byte) []byte
		want      string
	}{
		{v1.MediaTypeImageLayer, Plain, ""},
		{v1.MediaTypeImageLayer, Gzip, "is compressed"},
		{v1.MediaTypeImageLayerZstd, Zstd, ""},
		{v1.MediaTypeImageLayerZstd, skippable, ""},
		{v1.MediaTypeImageLayerGzip, Plain, ""},
		{v1.MediaTypeImageLayerGzip, Zstd, ""},
		{v1.MediaTypeImageLayerNonDistributableGzip, Gzip, ""}, //nolint:staticcheck // old images have it
		{images.MediaTypeDockerSchema2Layer, Gzip, ""},
		{images.MediaTypeDockerSchema2LayerForeignGzip, Gzip, ""},
		{images.MediaTypeDockerSchema2LayerZstd, Zstd, ""},
		{"application/vnd.cncf.helm.chart.content.v1.tar+gzip", Gzip, "does not unpack"},
		{v1.MediaTypeImageLayerGzip + "+encrypted", Gzip, "encrypted"},
	} {
		t.Run(row.mediaType, func(t *testing.T) {
			a := NewArchive()
			amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
			config := a.AddBlob(v1.MediaTypeImageConfig, configFor(amd64, plain))
			l := a.AddBlob(row.mediaType, row.pack(plain))
			m := a.AddBlob(v1.MediaTypeImageManifest, encode(v1.Manifest{Config: config, Layers: []v1.Descriptor{l}}))
			a.AddIndex(Named(m, "app:1"))
			_, err := planOf(a.Bytes(), "linux/amd64")
			if (row.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("error is %v, want one about %q", err, row.want)
			}
		})
	}
}

// An archive that does not fit is refused before anything of it is written: one that is large in
// itself, one that unpacks to more, once or twice, and one whose files are mostly holes.
func TestCheckArchive_NoRoom(t *testing.T) {
	const room, large = 8 << 20, 32 << 20
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	oci := func(layer []byte, pack func([]byte) []byte) []byte {
		a := NewArchive()
		a.AddIndex(Named(a.AddImage(amd64, layer, pack), "app:1"))
		return a.Bytes()
	}
	docker := func(layer []byte, pack func([]byte) []byte) []byte {
		a := NewArchive()
		a.Add("l.tar", pack(layer))
		a.Add("c.json", configFor(amd64, layer))
		a.Add(dockerManifest, encode([]map[string]any{
			{"Config": "c.json", "RepoTags": []string{"app:1"}, "Layers": []string{"l.tar"}}}))
		return a.Bytes()
	}
	zeros := LargeLayer(large)
	many := NewArchive()
	for _, name := range strings.Split(strings.Repeat("x ", 5000), " ") {
		many.Add(name, []byte("x"))
	}
	rows := map[string][]byte{
		"plain":             oci(zeros, Plain),
		"plain, in gzip":    Gzip(oci(zeros, Plain)),
		"gzip":              oci(zeros, Gzip),
		"zstd":              oci(zeros, Zstd),
		"docker, plain":     Zstd(docker(zeros, Plain)),
		"docker, gzip":      docker(zeros, Gzip),
		"many small files":  oci(many.Bytes(), Gzip),
		"not the last part": append(oci(zeros, Gzip), 1, 2, 3),
	}
	if _, err := exec.LookPath("tar"); err == nil {
		sparse, err := SparseLayer(t.TempDir(), large)
		if err != nil {
			t.Fatal(err)
		}
		if len(sparse) > 1<<20 {
			t.Fatalf("the sparse layer has %d bytes", len(sparse))
		}
		rows["sparse"] = oci(sparse, Plain)
		rows["sparse, gzip"] = docker(sparse, Gzip)
	}
	for name, data := range rows {
		if _, err := checkArchive(bytes.NewReader(data), platforms.Only(amd64), room); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	// What this machine does not use takes no room unpacked.
	a := NewArchive()
	mine := a.AddImage(amd64, LayerOf("mine"), Gzip)
	other := a.AddImage(v1.Platform{OS: "linux", Architecture: "arm64"}, zeros, Gzip)
	a.AddIndex(Named(mine, "app:1"), Named(other, "app:1"))
	if _, err := checkArchive(bytes.NewReader(a.Bytes()), platforms.Only(amd64), room); err != nil {
		t.Errorf("another platform's large layer: %v", err)
	}
}

// What is no image archive is told apart from an archive that is damaged.
func TestCheckArchive_NoArchive(t *testing.T) {
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	a := NewArchive()
	a.AddIndex(Named(a.AddImage(amd64, LayerOf("x"), Gzip), "app:1"))
	good := a.Bytes()
	something := NewArchive()
	something.Add("etc/passwd", []byte("root"))
	for _, row := range []struct {
		name string
		data []byte
		want string
		none bool
	}{
		{"empty", nil, "empty", true},
		{"text", []byte(strings.Repeat("this is a note\n", 100)), "tar", true},
		{"list of images",
			[]byte("# these\ndocker.io/library/app:1\nexample.com/b@sha256:" + strings.Repeat("a", 64) + "\n"),
			"list of image names", true},
		{"long list of images", []byte(strings.Repeat("docker.io/library/app:1\n", 100)), "list of image names", true},
		{"tar of something else", something.Bytes(), "neither", true},
		{"xz", append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, good...), "xz -d", true},
		{"lz4", append([]byte{0x04, 0x22, 0x4d, 0x18}, good...), "lz4 -d", true},
		{"zip", append([]byte("PK\x03\x04"), good...), "unzip", true},
		{"cut in a file", good[:len(good)-1600], "unexpected EOF", false},
		{"cut between files", good[:len(good)/2], "cut short", false},
		{"cut gzip", Gzip(good)[:200], "EOF", false},
	} {
		_, err := planOf(row.data, "linux/amd64")
		if !errors.Is(err, ErrNotAnImage) || errors.Is(err, errNoArchive) != row.none ||
			!strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error is %v, want one about %q; no archive at all: %v", row.name, err, row.want, row.none)
		}
	}
	for name, data := range map[string][]byte{"gzip": Gzip(good), "zstd": Zstd(good)} {
		if _, err := planOf(data, "linux/amd64"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if bzip2, err := exec.LookPath("bzip2"); err == nil {
		cmd := exec.Command(bzip2)
		cmd.Stdin = bytes.NewReader(good)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := planOf(packed, "linux/amd64"); err != nil {
			t.Errorf("bzip2: %v", err)
		}
	}
}
