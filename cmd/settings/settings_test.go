package settings

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var all = []Setting{
	{Name: "data-dir", Default: "/var/lib/mote"},
	{Name: "https-listen-port", Kind: Int},
	{Name: "debug", Kind: Bool},
	{Name: "cluster-cidr", Kind: List},
	{Name: "kubelet-arg", Kind: Args},
}

func names() []string {
	var out []string
	for _, s := range all {
		out = append(out, s.Name)
	}
	return out
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolve_Precedence(t *testing.T) {
	flag := map[string][]string{"data-dir": {"/flag"}}
	env := map[string]string{"MOTE_DATA_DIR": "/env"}
	const file = "data-dir: /file\n"
	for _, test := range []struct {
		name  string
		flags map[string][]string
		env   map[string]string
		file  string
		want  string
		from  string
	}{
		{"default", nil, nil, "", "/var/lib/mote", ""},
		{"file over default", nil, nil, file, "/file", "config.yaml"},
		{"environment over file", nil, env, file, "/env", "MOTE_DATA_DIR"},
		{"flag over environment", flag, env, file, "/flag", "--data-dir"},
		{"empty environment is not set", nil, map[string]string{"MOTE_DATA_DIR": ""}, file, "/file", "config.yaml"},
		{"last flag counts", map[string][]string{"data-dir": {"/a", "/b"}}, nil, "", "/b", "--data-dir"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, test.file)
			files, err := ReadFiles(path, true, names())
			if err != nil {
				t.Fatal(err)
			}
			v, err := Resolve(all, Sources{Flags: test.flags, Files: files,
				LookupEnv: func(k string) (string, bool) { s, ok := test.env[k]; return s, ok }})
			if err != nil {
				t.Fatal(err)
			}
			if got := v.String("data-dir"); got != test.want {
				t.Errorf("data-dir is %q, want %q", got, test.want)
			}
			if from := v.From("data-dir"); !strings.Contains(from, test.from) || (test.from == "") != (from == "") {
				t.Errorf("source is %q, want %q", from, test.from)
			}
		})
	}
}

func TestResolve_Forms(t *testing.T) {
	for _, test := range []struct {
		name    string
		flags   map[string][]string
		env     map[string]string
		file    string
		setting string
		want    []string
	}{
		{"list by commas", map[string][]string{"cluster-cidr": {"a,b", "c"}}, nil, "", "cluster-cidr",
			[]string{"a", "b", "c"}},
		{"list in the environment", nil, map[string]string{"MOTE_CLUSTER_CIDR": "a, b"}, "", "cluster-cidr",
			[]string{"a", "b"}},
		{"list in a file", nil, nil, "cluster-cidr: [a, b]", "cluster-cidr", []string{"a", "b"}},
		{"one item in a file", nil, nil, "cluster-cidr: a,b", "cluster-cidr", []string{"a", "b"}},
		{"args keep commas", map[string][]string{"kubelet-arg": {"x=1,2", "y=3"}}, nil, "", "kubelet-arg",
			[]string{"x=1,2", "y=3"}},
		{"args in the environment", nil, map[string]string{"MOTE_KUBELET_ARG": "x=1,2;y=3"}, "", "kubelet-arg",
			[]string{"x=1,2", "y=3"}},
		{"args in a file", nil, nil, "kubelet-arg:\n- x=1,2\n- max-pods=3\n", "kubelet-arg",
			[]string{"x=1,2", "max-pods=3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, test.file)
			files, err := ReadFiles(path, true, names())
			if err != nil {
				t.Fatal(err)
			}
			v, err := Resolve(all, Sources{Flags: test.flags, Files: files,
				LookupEnv: func(k string) (string, bool) { s, ok := test.env[k]; return s, ok }})
			if err != nil {
				t.Fatal(err)
			}
			if got := v.List(test.setting); !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s is %q, want %q", test.setting, got, test.want)
			}
		})
	}
}

func TestReadFiles_Fragments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, "data-dir: /one\ndebug: true\n")
	write(t, path+".d/20.yaml", "data-dir: /three\n")
	write(t, path+".d/10.yaml", "data-dir: /two\nhttps-listen-port: 7443\n")
	write(t, path+".d/30.txt", "no: yaml\n")
	files, err := ReadFiles(path, true, names())
	if err != nil {
		t.Fatal(err)
	}
	v, err := Resolve(all, Sources{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	if v.String("data-dir") != "/three" || v.Int("https-listen-port") != 7443 || !v.Bool("debug") {
		t.Errorf("got %q, %d, %v; want /three, 7443, true", v.String("data-dir"), v.Int("https-listen-port"),
			v.Bool("debug"))
	}
}

func TestReadFiles_Refused(t *testing.T) {
	for _, test := range []struct {
		name, content string
		want          []string
	}{
		{"unknown key", "cluster-cdir: 10.0.0.0/8\n",
			[]string{`unknown key "cluster-cdir"`, "config.yaml", `did you mean "cluster-cidr"?`}},
		{"unknown key like none", "zzz: 1\n", []string{`unknown key "zzz"`}},
		{"key given twice", "debug: true\ndebug: false\n", []string{"config.yaml", "debug"}},
		{"no YAML", "debug: [\n", []string{"parse configuration", "config.yaml"}},
		{"no mapping", "- debug\n", []string{"config.yaml"}},
		{"nested", "debug: {a: 1}\n", []string{"debug in ", "must be a value"}},
		{"list for one value", "data-dir: [a, b]\n", []string{"data-dir in ", "takes one value"}},
		{"no number", "https-listen-port: many\n", []string{`https-listen-port "many"`, "config.yaml", "no number"}},
		{"no switch", "debug: perhaps\n", []string{`debug "perhaps"`, "neither true nor false"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, test.content)
			files, err := ReadFiles(path, true, names())
			if err == nil {
				_, err = Resolve(all, Sources{Files: files})
			}
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("message has several lines: %q", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("message %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestReadFiles_Missing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := ReadFiles(path, false, nil); err != nil {
		t.Errorf("a default file that is missing: %v", err)
	}
	if _, err := ReadFiles(path, true, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a named file that is missing: %v, want an error that names it", err)
	}
}

func TestSuggest(t *testing.T) {
	for _, test := range []struct{ word, want string }{
		{"clsuter-cidr", "cluster-cidr"}, {"data_dir", "data-dir"}, {"debgu", "debug"}, {"kubelet-args", "kubelet-arg"},
		{"q", ""}, {"completely-else", ""},
	} {
		if got := Suggest(test.word, names()); (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
			t.Errorf("Suggest(%q) is %q, want %q in it", test.word, got, test.want)
		}
	}
}
