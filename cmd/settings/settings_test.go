package settings

import (
	"fmt"
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

func keys() Keys { return Keys{Known: names()} }

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
			files, err := ReadFiles(path, true, keys())
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
			files, err := ReadFiles(path, true, keys())
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

// A setting that is a word keeps its text, whatever YAML would take it for.
func TestReadFiles_WordsStayAsWritten(t *testing.T) {
	for _, row := range []struct{ name, written, want string }{
		{"number with a leading zero", "0123456789", "0123456789"},
		{"more digits than a number keeps", "123456.1234567890123456", "123456.1234567890123456"},
		{"large number", "1234567890123456789012", "1234567890123456789012"},
		{"octal", "007", "007"}, {"new octal", "0o17", "0o17"}, {"hexadecimal", "0x1f", "0x1f"},
		{"binary", "0b11", "0b11"}, {"underscores", "1_000", "1_000"}, {"sign", "+12", "+12"},
		{"fraction", "1.10", "1.10"}, {"exponent", "1e3", "1e3"}, {"infinity", ".inf", ".inf"},
		{"base sixty", "190:20:30", "190:20:30"}, {"time", "12:30", "12:30"},
		{"date", "2024-05-01", "2024-05-01"}, {"date and time", "2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"},
		{"on", "on", "on"}, {"y", "y", "y"}, {"No", "No", "No"}, {"TRUE", "TRUE", "TRUE"},
		{"duration", "7d", "7d"}, {"size", "10Mi", "10Mi"}, {"range", "10.42.0.0/16", "10.42.0.0/16"},
		{"double quotes", `"007"`, "007"}, {"single quotes", `'on'`, "on"}, {"quoted null", `"null"`, "null"},
		{"quoted tilde", `'~'`, "~"}, {"escapes", `"a\u0062\x63"`, "abc"},
		{"number with a word's tag", "!!str 007", "007"}, {"comment", "007 # agent", "007"},
		{"hash inside", "007#8", "007#8"}, {"colon inside", "a:b", "a:b"},
		{"block", "|\n  007\n", "007"}, {"folded block", ">-\n  007\n", "007"},
		{"anchor", "&a 007", "007"}, {"bom and carriage return", "007\r", "007"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			for form, content := range map[string]string{
				"value":     "data-dir: " + row.written + "\n",
				"list item": "kubelet-arg:\n- " + row.written + "\n",
			} {
				write(t, path, content)
				files, err := ReadFiles(path, true, keys())
				if err != nil {
					t.Errorf("%s: %v", form, err)
					continue
				}
				v, err := Resolve(all, Sources{Files: files})
				if err != nil {
					t.Fatal(err)
				}
				got := append(v.List("kubelet-arg"), v.String("data-dir"))[0]
				if got != row.want {
					t.Errorf("%s is %q, want %q", form, got, row.want)
				}
			}
		})
	}
}

// What a YAML or JSON file can say besides a word.
func TestReadFiles_Values(t *testing.T) {
	for _, row := range []struct {
		name, content string
		want          string // data-dir, port, debug, cluster-cidr
	}{
		{"empty file", "", "/var/lib/mote 0 false []"},
		{"comments only", "# nothing\n", "/var/lib/mote 0 false []"},
		{"a document without content", "---\n", "/var/lib/mote 0 false []"},
		{"null, tilde and nothing are not set", "data-dir: null\nhttps-listen-port: ~\ndebug:\ncluster-cidr: Null\n",
			"/var/lib/mote 0 false []"},
		{"document marks", "---\ndata-dir: /d\n...\n", "/d 0 false []"},
		{"byte order mark", "\ufeffdata-dir: /d\r\ndebug: yes\r\n", "/d 0 true []"},
		{"booleans of YAML 1.1", "debug: On\n", "/var/lib/mote 0 true []"},
		{"quoted boolean and number", "debug: \"no\"\nhttps-listen-port: '7443'\n", "/var/lib/mote 7443 false []"},
		{"list in one line", "cluster-cidr: [10.42.0.0/16, fd42::/56]\n",
			"/var/lib/mote 0 false [10.42.0.0/16 fd42::/56]"},
		{"anchor and alias", "cluster-cidr: &pods\n- 10.42.0.0/16\ndata-dir: &d /d\n", "/d 0 false [10.42.0.0/16]"},
		{"empty list", "cluster-cidr: []\n", "/var/lib/mote 0 false []"},
		{"JSON", "{\n\t\"data-dir\": \"/d\",\n\t\"https-listen-port\": 7443, \"debug\": true,\n" +
			"\t\"cluster-cidr\": [\"10.42.0.0/16\"]}\n", "/d 7443 true [10.42.0.0/16]"},
		{"JSON null", `{"data-dir": null}`, "/var/lib/mote 0 false []"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, row.content)
			files, err := ReadFiles(path, true, keys())
			if err != nil {
				t.Fatal(err)
			}
			v, err := Resolve(all, Sources{Files: files})
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(v.String("data-dir"), " ", v.Int("https-listen-port"), " ", v.Bool("debug"), " ",
				v.List("cluster-cidr"))
			if got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
}

// A person mends a file once, not once for each start.
func TestReadFiles_EveryFaultAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, "cluster-init: true\ndebgu: true\ndata-dir: {a: 1}\n")
	write(t, path+".d/10.yaml", "flannel-backend: vxlan\n")
	write(t, path+".d/20.yaml", "debug: [\n")
	k := keys()
	k.Answer = func(key string) string {
		return map[string]string{"cluster-init": "see docs/several-servers.md"}[key]
	}
	_, err := ReadFiles(path, true, k)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`unknown key "cluster-init" in ` + path + ": see docs/several-servers.md\n",
		`unknown key "debgu"`, "data-dir in " + path + ", line 3, must be",
		`unknown key "flannel-backend" in ` + path + ".d/10.yaml",
		"parse configuration " + path + ".d/20.yaml"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message %q lacks %q", err, want)
		}
	}
	_, err = Resolve(all, Sources{Flags: map[string][]string{"debug": {"perhaps"}, "https-listen-port": {"many"}}})
	if err == nil || !strings.Contains(err.Error(), "debug") || !strings.Contains(err.Error(), "https-listen-port") {
		t.Errorf("settings: %v, want both faults", err)
	}
}

func TestReadFiles_OtherEndings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path+".d/10.yml", "data-dir: /one\n")
	write(t, path+".d/20.json", `{"debug": true}`)
	write(t, path+".d/.30.yaml", "no-such-key: 1\n")
	write(t, path+".d/40.yaml~", "no-such-key: 1\n")
	files, err := ReadFiles(path, false, keys())
	if err != nil || len(files) != 2 {
		t.Errorf("read %v, %v; want the keys of two files", files, err)
	}
	write(t, strings.TrimSuffix(path, ".yaml")+".yml", "debug: true\n")
	_, err = ReadFiles(path, false, keys())
	if err == nil || !strings.Contains(err.Error(), "config.yml is not read") {
		t.Errorf("the default file under another name: %v", err)
	}
}

func TestReadFiles_LinkToNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.Symlink("gone.yaml", path); err != nil {
		t.Fatal(err)
	}
	_, err := ReadFiles(path, false, keys())
	if err == nil || !strings.Contains(err.Error(), path+" is a link to gone.yaml, which is not there") {
		t.Errorf("a link to no file: %v", err)
	}
}

func TestReadFiles_Fragments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, "data-dir: /one\ndebug: true\n")
	write(t, path+".d/20.yaml", "data-dir: /three\n")
	write(t, path+".d/10.yaml", "data-dir: /two\nhttps-listen-port: 7443\n")
	write(t, path+".d/30.txt", "no: yaml\n")
	files, err := ReadFiles(path, true, keys())
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
		{"key given twice", "debug: true\ndebug: false\n", []string{"config.yaml", "debug", "lines 1 and 2"}},
		{"list that shall grow", "kubelet-arg+: [max-pods=7]\n", []string{`"kubelet-arg+"`, "replaces the whole list"}},
		{"two documents", "debug: true\n---\ndebug: false\n", []string{"config.yaml", "second document"}},
		{"merge key", "<<: {debug: true}\n", []string{`unknown key "<<"`}},
		{"key that is a list", "[debug]: true\n", []string{"line 1", "key must be a word"}},
		{"map in a list", "kubelet-arg:\n- max-pods: 7\n", []string{"kubelet-arg in ", `"max-pods=7"`}},
		{"list in a list", "kubelet-arg: [[a]]\n", []string{"kubelet-arg in ", "must be a value"}},
		{"nothing in a list", "kubelet-arg: [a, ~]\n", []string{"kubelet-arg in ", "must be a value"}},
		{"alias of a map", "debug: &a {x: 1}\ndata-dir: *a\n", []string{"debug in ", "must be a value"}},
		{"alias of itself", "kubelet-arg: &a [*a]\n", []string{"config.yaml"}},
		{"unknown anchor", "data-dir: *nowhere\n", []string{"config.yaml", "nowhere"}},
		{"binary", "data-dir: !!binary YWJj\n", []string{"data-dir in ", "!!binary"}},
		{"foreign tag", "data-dir: !vault abc\n", []string{"data-dir in ", "!vault"}},
		{"several lines", "kubelet-arg: |\n  a=1\n  b=2\n", []string{"kubelet-arg in ", "several lines"}},
		{"octal port", "https-listen-port: 06443\n", []string{`https-listen-port "06443"`, "decimal"}},
		{"hexadecimal port", "https-listen-port: 0x192b\n", []string{`https-listen-port "0x192b"`, "decimal"}},
		{"port with a fraction", "https-listen-port: 6443.0\n", []string{`https-listen-port "6443.0"`, "decimal"}},
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
			files, err := ReadFiles(path, true, keys())
			if err == nil {
				_, err = Resolve(all, Sources{Files: files})
			}
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "\n") && test.name != "alias of a map" {
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
	if _, err := ReadFiles(path, false, Keys{}); err != nil {
		t.Errorf("a default file that is missing: %v", err)
	}
	if _, err := ReadFiles(path, true, Keys{}); err == nil || !strings.Contains(err.Error(), path) {
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
