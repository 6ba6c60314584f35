package kubelet

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/scheme"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

// dropInExtension is what upstream reads in the folder of --config-dir.
const dropInExtension = ".conf"

// ExpandArgs puts in front of args what the files they name say about things that not only the
// kubelet reads: where it listens, the cgroup driver, feature gates. Flags come later, and so win.
func ExpandArgs(args []string) ([]string, error) {
	file, err := readFiles(args)
	if err != nil || file == nil {
		return args, err
	}
	var c kubeletv1beta1.KubeletConfiguration
	if err := json.Unmarshal(file, &c); err != nil {
		return nil, fmt.Errorf("read kubelet configuration: %w", err)
	}
	var out []string
	if c.Address != "" {
		out = append(out, "address="+c.Address)
	}
	if c.Port != 0 {
		out = append(out, fmt.Sprintf("port=%d", c.Port))
	}
	if c.CgroupDriver != "" {
		out = append(out, "cgroup-driver="+c.CgroupDriver)
	}
	var gates []string
	for name, on := range c.FeatureGates {
		gates = append(gates, fmt.Sprintf("%s=%t", name, on))
	}
	if len(gates) > 0 {
		slices.Sort(gates)
		out = append(out, "feature-gates="+strings.Join(gates, ","))
	}
	return append(out, args...), nil
}

// applyFiles merges the files that args name into k, as upstream's command does: what a file does
// not set stays as it is, a later drop-in wins over an earlier one and over the file.
func applyFiles(k *config.KubeletConfiguration, args []string) error {
	file, err := readFiles(args)
	if err != nil || file == nil {
		return err
	}
	var versioned kubeletv1beta1.KubeletConfiguration
	if err := v1beta1.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(k, &versioned,
		nil); err != nil {
		return fmt.Errorf("convert kubelet configuration: %w", err)
	}
	var set kubeletv1beta1.KubeletConfiguration
	if err := json.Unmarshal(file, &set); err != nil {
		return fmt.Errorf("read kubelet configuration: %w", err)
	}
	clearMaps(&versioned, set)
	base, err := json.Marshal(versioned)
	if err != nil {
		return fmt.Errorf("encode kubelet configuration: %w", err)
	}
	merged, err := jsonpatch.MergePatch(base, file)
	if err != nil {
		return fmt.Errorf("merge kubelet configuration: %w", err)
	}
	versioned = kubeletv1beta1.KubeletConfiguration{}
	if err := json.Unmarshal(merged, &versioned); err != nil {
		return fmt.Errorf("read merged kubelet configuration: %w", err)
	}
	v1beta1.SetDefaults_KubeletConfiguration(&versioned)
	return v1beta1.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(&versioned, k, nil)
}

// clearMaps empties the maps of base that set has too: a file that sets evictionHard means all of
// it, unless it asks to merge.
func clearMaps(base *kubeletv1beta1.KubeletConfiguration, set kubeletv1beta1.KubeletConfiguration) {
	if set.MergeDefaultEvictionSettings != nil && *set.MergeDefaultEvictionSettings {
		return
	}
	into, from := reflect.ValueOf(base).Elem(), reflect.ValueOf(set)
	for i := range from.NumField() {
		if f := from.Field(i); f.Kind() == reflect.Map && !f.IsNil() {
			into.Field(i).SetZero()
		}
	}
}

// readFiles returns the merged content of the files that args name, as JSON, or nil if they name
// none.
func readFiles(args []string) ([]byte, error) {
	var files []string
	if file := upstreamflag.Value(args, "config", ""); file != "" {
		files = append(files, file)
	}
	dropIns, err := dropInsOf(upstreamflag.Value(args, "config-dir", ""))
	if err != nil {
		return nil, err
	}
	var merged []byte
	for _, file := range append(files, dropIns...) {
		content, err := readFile(file)
		if err != nil {
			return nil, fmt.Errorf("kubelet-arg config: %w", err)
		}
		if merged == nil {
			merged = content
			continue
		}
		if merged, err = jsonpatch.MergeMergePatches(merged, content); err != nil {
			return nil, fmt.Errorf("kubelet-arg config: merge %s: %w", file, err)
		}
	}
	return merged, nil
}

// dropInsOf lists the files of a folder that upstream reads, in its order.
func dropInsOf(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	var files []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch ext := filepath.Ext(path); {
		case path == dir && !entry.IsDir():
			return errors.New("it is no folder")
		case entry.IsDir():
		case ext == dropInExtension:
			files = append(files, path)
		case ext == ".yaml" || ext == ".yml" || ext == ".json":
			return fmt.Errorf("%s would not be read: let its name end in %s", path, dropInExtension)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kubelet-arg config-dir %s: %w", dir, err)
	}
	return files, nil
}

// readFile reads one KubeletConfiguration. Unlike upstream, which only logs them, it refuses fields
// that there are not.
func readFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	first, err := reader.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	if more, err := reader.Read(); err == nil && len(bytes.TrimSpace(more)) > 0 {
		return nil, fmt.Errorf("%s holds several documents: a kubelet reads one", path)
	}
	if len(bytes.TrimSpace(first)) == 0 {
		return nil, fmt.Errorf("%s is empty: write a KubeletConfiguration into it", path)
	}
	var content map[string]any
	if err := yaml.UnmarshalStrict(first, &content); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	want := kubeletv1beta1.SchemeGroupVersion.WithKind("KubeletConfiguration")
	if content["apiVersion"] != want.GroupVersion().String() || content["kind"] != want.Kind {
		got := "lacks kind or apiVersion"
		if content["apiVersion"] != nil && content["kind"] != nil {
			got = fmt.Sprintf("is a %v of %v", content["kind"], content["apiVersion"])
		}
		return nil, fmt.Errorf("%s %s: a kubelet reads a %s of %s", path, got, want.Kind, want.GroupVersion())
	}
	if err := checkGates(content["featureGates"]); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	_, codecs, err := scheme.NewSchemeAndCodecs(serializer.EnableStrict)
	if err != nil {
		return nil, fmt.Errorf("make decoder: %w", err)
	}
	if _, _, err := codecs.UniversalDecoder().Decode(first, nil, nil); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	if err := refuseOwn(path, content); err != nil {
		return nil, err
	}
	absolutePaths(content, filepath.Dir(path))
	return json.Marshal(content)
}

// checkGates refuses feature gates that upstream's defaulting would end the process over.
func checkGates(field any) error {
	gates, _ := field.(map[string]any)
	named := make(map[string]bool, len(gates))
	for name, on := range gates {
		value, ok := on.(bool)
		if !ok {
			return fmt.Errorf("feature gate %s is neither true nor false", name)
		}
		named[name] = value
	}
	if err := utilfeature.DefaultMutableFeatureGate.DeepCopy().SetFromMap(named); err != nil {
		return fmt.Errorf("set featureGates: %w", err)
	}
	return nil
}

// absolutePaths makes paths of a file relative to the file's folder, as upstream does.
func absolutePaths(content map[string]any, dir string) {
	for _, key := range []string{"staticPodPath", "resolvConf", "volumePluginDir"} {
		if path, ok := content[key].(string); ok && path != "" && !filepath.IsAbs(path) {
			content[key] = filepath.Join(dir, path)
		}
	}
}
