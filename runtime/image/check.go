package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// archivePlan is what importing an archive does.
type archivePlan struct {
	// images are the chosen ones by name: the digest of their entry in the archive's index, or in
	// Docker layout that of their configuration.
	images map[string]digest.Digest
	// unnamed are images that are left out for want of a name.
	unnamed []string
	// aliases are names in a Docker manifest of files that the archive has under other names.
	aliases map[string]string
	// content and unpacked are the bytes that the archive's files and the chosen images' layers
	// take.
	content, unpacked int64
}

// checker checks the images of an archive for one kind of machine.
type checker struct {
	archiveContents
	machine platforms.MatchComparer
	// layers are those of the chosen images, by the name of their file.
	layers map[string]unpackedLayer
}

// thisMachine orders platforms by how well they suit this machine, as containerd does when it
// unpacks an image: on amd64 also 386, on arm64 also 32-bit arm, if there is nothing better.
func thisMachine() platforms.MatchComparer { return platforms.Default() }

// best returns the entry of an index that containerd uses on a machine.
func best(machine platforms.MatchComparer, entries []v1.Descriptor) []v1.Descriptor {
	var use []v1.Descriptor
	for _, d := range entries {
		if d.Platform == nil || machine.Match(*d.Platform) {
			use = append(use, d)
		}
	}
	slices.SortStableFunc(use, func(a, b v1.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return boolCompare(a.Platform == nil, b.Platform == nil)
		case machine.Less(*a.Platform, *b.Platform):
			return -1
		case machine.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return use[:min(len(use), 1)]
}

// boolCompare orders false before true.
func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// checkArchive reads an archive to its end, compares every blob with its digest, and returns what
// importing it would do on a machine that has so much room. It changes nothing, so that a bad
// archive is refused before anything is imported.
func checkArchive(r io.Reader, machine platforms.MatchComparer, room int64) (archivePlan, error) {
	tr, err := decompress(r)
	if err != nil {
		return archivePlan{}, err
	}
	defer tr.Close()
	contents, err := readContents(tr, room)
	if err != nil {
		return archivePlan{}, err
	}
	c := checker{archiveContents: contents, machine: machine, layers: map[string]unpackedLayer{}}
	plan := archivePlan{
		images:  map[string]digest.Digest{},
		aliases: map[string]string{},
		content: c.size,
	}
	_, isOCI := c.json[v1.ImageLayoutFile]
	_, isDocker := c.json[dockerManifest]
	switch {
	case isOCI:
		err = c.checkOCI(&plan)
	case isDocker:
		err = c.checkDocker(&plan)
	case slices.ContainsFunc(slices.Collect(maps.Keys(c.blobs)), isBlobName):
		err = notAnImage("it is cut short: it has blobs, but neither %s nor %s", v1.ImageLayoutFile, dockerManifest)
	default:
		err = c.noLayout()
	}
	if err != nil {
		return archivePlan{}, err
	}
	if len(plan.images) == 0 {
		return archivePlan{}, notAnImage(
			"its images have no names: save it with a name and tag, as in `docker save NAME:TAG`")
	}
	for _, l := range c.layers {
		if plan.unpacked += l.size; l.tooLarge {
			return plan, ErrNoRoom
		}
	}
	if plan.content+plan.unpacked > room {
		return plan, ErrNoRoom
	}
	return plan, nil
}

// noLayout returns the [errNoArchive] of a tar without an index. A user may have packed the folder
// of one instead of what is in it.
func (c checker) noLayout() error {
	for _, name := range slices.Sorted(maps.Keys(c.json)) {
		if base := path.Base(name); base == v1.ImageLayoutFile || base == dockerManifest {
			return noArchive("it has %s in a folder: pack what is in the folder, as `tar -C %s -cf IMAGE.tar .` does",
				name, path.Dir(name))
		}
	}
	return noArchive("it has neither %s nor %s", v1.ImageLayoutFile, dockerManifest)
}

func isBlobName(name string) bool { return strings.HasPrefix(name, "blobs/") }

// candidate is an image that this machine can use, or why not.
type candidate struct {
	digest   digest.Digest
	platform v1.Platform
	// other names the platforms it is for instead of this machine's.
	other string
	// layers are the names of the files of its layers.
	layers []string
}

// choose adds an image to the plan: for each name the one that suits the machine best.
func (c checker) choose(plan *archivePlan, candidates map[string][]candidate) {
	for name, list := range candidates {
		// Of equal ones the last counts, as for docker load.
		slices.Reverse(list)
		slices.SortStableFunc(list, func(a, b candidate) int {
			return boolCompare(!c.machine.Less(a.platform, b.platform), !c.machine.Less(b.platform, a.platform))
		})
		plan.images[name] = list[0].digest
		for _, l := range list[0].layers {
			c.layers[l] = c.blobs[l].layer
		}
	}
}

func (c checker) checkOCI(plan *archivePlan) error {
	var layout v1.ImageLayout
	if err := json.Unmarshal(c.json[v1.ImageLayoutFile], &layout); err != nil {
		return notAnImage("parse %s: %w", v1.ImageLayoutFile, err)
	}
	if layout.Version != v1.ImageLayoutVersion {
		return notAnImage("its layout version is %q, not %s", layout.Version, v1.ImageLayoutVersion)
	}
	// containerd finds blobs by their content, whatever name has it.
	for name := range c.links {
		if target, ok := c.resolve(name); ok && isBlobName(name) {
			c.blobs[name] = c.blobs[target]
			if data, ok := c.json[target]; ok {
				c.json[name] = data
			}
		}
	}
	for name, b := range c.blobs {
		if rest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && rest != b.digest.Encoded() {
			return notAnImage("blob %s is damaged: its content has digest %s", rest, b.digest)
		}
	}
	data, ok := c.json[v1.ImageIndexFile]
	if !ok {
		return notAnImage("it has no %s", v1.ImageIndexFile)
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return notAnImage("parse %s: %w", v1.ImageIndexFile, err)
	}
	if len(index.Manifests) == 0 {
		return notAnImage("its %s lists no image", v1.ImageIndexFile)
	}
	named := map[string][]candidate{}
	var others []string
	for _, m := range index.Manifests {
		name := imageNameOf(m.Annotations)
		if name == "" && m.Platform != nil && !c.machine.Match(*m.Platform) {
			continue // an attestation, or another platform of an image
		}
		found, err := c.checkDescriptor(m)
		switch {
		case err != nil:
			return err
		case found.other != "":
			others = append(others, found.other)
		case name == "":
			plan.unnamed = append(plan.unnamed, m.Digest.String())
		default:
			named[name] = append(named[name], found)
		}
	}
	if len(named) == 0 && len(others) > 0 && len(plan.unnamed) == 0 {
		return c.notForThisMachine(others)
	}
	c.choose(plan, named)
	return nil
}

func (c checker) notForThisMachine(others []string) error {
	slices.Sort(others)
	return notAnImage("it is for %s, this machine is %s", strings.Join(slices.Compact(others), ", "),
		platforms.DefaultString())
}

// checkDescriptor checks that the content below a descriptor, as far as this machine needs it, is
// in the archive.
func (c checker) checkDescriptor(d v1.Descriptor) (candidate, error) {
	if d.Platform != nil && !c.machine.Match(*d.Platform) {
		return candidate{other: platforms.Format(*d.Platform)}, nil
	}
	if err := c.present(d); err != nil {
		return candidate{}, err
	}
	if !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
		return candidate{}, notAnImage("%s has the unknown type %q", d.Digest, d.MediaType)
	}
	data, err := c.jsonOf(blobName(d.Digest), "manifest")
	if err != nil {
		return candidate{}, err
	}
	if images.IsIndexType(d.MediaType) {
		return c.checkIndex(d, data)
	}
	return c.checkManifest(d, data)
}

// checkIndex checks the one image of an index that this machine uses. An archive need not hold the
// others: tools that save one platform keep the index of all.
func (c checker) checkIndex(d v1.Descriptor, data []byte) (candidate, error) {
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return candidate{}, notAnImage("parse index %s: %w", d.Digest, err)
	}
	chosen := best(c.machine, index.Manifests)
	if len(chosen) == 0 {
		var found []string
		for _, m := range index.Manifests {
			if m.Platform.OS != "unknown" {
				found = append(found, platforms.Format(*m.Platform))
			}
		}
		return candidate{other: strings.Join(found, ", ")}, nil
	}
	found, err := c.checkDescriptor(chosen[0])
	if err != nil && chosen[0].Platform != nil {
		return candidate{}, fmt.Errorf("%w (it is part of the image for %s, the best of its index for this "+
			"machine)", err,
			platforms.Format(*chosen[0].Platform))
	}
	found.digest = d.Digest
	return found, err
}

func (c checker) checkManifest(d v1.Descriptor, data []byte) (candidate, error) {
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return candidate{}, notAnImage("parse manifest %s: %w", d.Digest, err)
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return candidate{other: "no container (" + m.Config.MediaType + ")"}, nil
	}
	if err := c.present(m.Config); err != nil {
		return candidate{}, err
	}
	text, err := c.jsonOf(blobName(m.Config.Digest), "image configuration")
	if err != nil {
		return candidate{}, err
	}
	var config v1.Image
	if err := json.Unmarshal(text, &config); err != nil {
		return candidate{}, notAnImage("parse image configuration %s: %w", m.Config.Digest, err)
	}
	found := candidate{digest: d.Digest}
	if found.platform, found.other = c.platformOf(config); found.other != "" {
		return found, nil
	}
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return candidate{}, notAnImage("manifest %s has %d layers, its configuration names %d", d.Digest, len(m.Layers),
			len(config.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		if err := c.present(l); err != nil {
			return candidate{}, err
		}
		name := blobName(l.Digest)
		if strings.HasSuffix(l.MediaType, "+encrypted") {
			return candidate{}, notAnImage("layer %s is encrypted", l.Digest)
		}
		if err := c.checkLayer(name, config.RootFS.DiffIDs[i]); err != nil {
			return candidate{}, err
		}
		packed, err := images.DiffCompression(context.Background(), l.MediaType)
		if err != nil {
			return candidate{}, notAnImage("layer %s has the type %q, which containerd does not unpack", l.Digest,
				l.MediaType)
		}
		if b := c.blobs[name]; packed == "" && b.layer.digest != b.digest && !b.layer.tooLarge {
			return candidate{}, notAnImage("layer %s is compressed, which its type %q denies", l.Digest, l.MediaType)
		}
		found.layers = append(found.layers, name)
	}
	return found, nil
}

// platformOf returns the platform of a configuration, or its name if this machine is another. One
// without a platform fits everywhere.
func (c checker) platformOf(config v1.Image) (p v1.Platform, other string) {
	if config.OS == "" {
		return platforms.DefaultSpec(), ""
	}
	p = platforms.Normalize(config.Platform)
	if !c.machine.Match(p) {
		return p, platforms.Format(config.Platform)
	}
	return p, ""
}

// jsonOf returns the text of a file.
func (c checker) jsonOf(name, what string) ([]byte, error) {
	if data, ok := c.json[name]; ok {
		return data, nil
	}
	if b := c.blobs[name]; b.size > maxJSON {
		return nil, notAnImage("%s %s has %s: the most that is read is %s", what, name, bytesText(b.size),
			bytesText(maxJSON))
	}
	return nil, notAnImage("%s %s is no JSON", what, name)
}

// checkLayer compares a layer with the digest its image's configuration has, which is that of the
// unpacked tar.
func (c checker) checkLayer(name string, diffID digest.Digest) error {
	l := c.blobs[name].layer
	switch {
	case l.err != nil:
		return fmt.Errorf("%w: layer %s is damaged: %w", ErrNotAnImage, name, l.err)
	case !l.tooLarge && l.digest != diffID:
		return notAnImage("layer %s is damaged: unpacked its digest is %s, not %s", name, l.digest, diffID)
	}
	return nil
}

func (c checker) present(d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return notAnImage("digest %q: %w", d.Digest, err)
	}
	if d.Digest.Algorithm() != digest.Canonical {
		return notAnImage("digest %q: only those of %s are supported", d.Digest, digest.Canonical)
	}
	b, ok := c.blobs[blobName(d.Digest)]
	if !ok {
		return notAnImage("blob %s is missing", d.Digest)
	}
	if b.size != d.Size {
		return notAnImage("blob %s has %d bytes, its descriptor says %d", d.Digest, b.size, d.Size)
	}
	return nil
}

func (c checker) checkDocker(plan *archivePlan) error {
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(c.json[dockerManifest], &manifests); err != nil {
		return notAnImage("parse %s: %w", dockerManifest, err)
	}
	named := map[string][]candidate{}
	var others []string
	for _, m := range manifests {
		configFile, err := c.fileOf(m.Config, plan.aliases)
		if err != nil {
			return err
		}
		data, err := c.jsonOf(configFile, "image configuration")
		if err != nil {
			return err
		}
		var config v1.Image
		if err := json.Unmarshal(data, &config); err != nil {
			return notAnImage("parse image configuration %s: %w", m.Config, err)
		}
		found := candidate{digest: c.blobs[configFile].digest}
		if want, ok := namedDigest(m.Config); ok && want != found.digest {
			return notAnImage("image configuration %s is damaged", m.Config)
		}
		if found.platform, found.other = c.platformOf(config); found.other != "" {
			others = append(others, found.other)
			continue
		}
		if found.layers, err = c.checkDockerLayers(m.Layers, config.RootFS.DiffIDs, plan.aliases); err != nil {
			return err
		}
		if len(m.RepoTags) == 0 {
			plan.unnamed = append(plan.unnamed, found.digest.String())
		}
		for _, tag := range m.RepoTags {
			name, err := reference.ParseDockerRef(tag)
			if err != nil {
				return notAnImage("image name %q: %w", tag, err)
			}
			named[name.String()] = append(named[name.String()], found)
		}
	}
	if len(named) == 0 && len(others) > 0 && len(plan.unnamed) == 0 {
		return c.notForThisMachine(others)
	}
	c.choose(plan, named)
	return nil
}

func (c checker) checkDockerLayers(layers []string, diffIDs []digest.Digest, aliases map[string]string) (
	[]string, error) {
	if len(layers) != len(diffIDs) {
		return nil, notAnImage("it has %d layers, its configuration names %d", len(layers), len(diffIDs))
	}
	var names []string
	for i, l := range layers {
		name, err := c.fileOf(l, aliases)
		if err != nil {
			return nil, err
		}
		if err := c.checkLayer(name, diffIDs[i]); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
