package cmd

import (
	"bytes"
	goflag "flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/image"
	"github.com/mote-dev/mote/server/join"
	"github.com/mote-dev/mote/server/revocation"
	"github.com/mote-dev/mote/store"
)

// printed are the types that commands print with -o json.
var printed = []any{Status{}, Versions{}, []hostcheck.Result(nil), []image.Info(nil), []store.SnapshotInfo(nil),
	[]join.NodeInfo(nil), []join.TokenInfo(nil), []revocation.Entry(nil), []shownCertificate(nil)}

func TestPrint_JSONKeysAreAllOfOneCase(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer:
			walk(typ.Elem())
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() || seen[typ] {
				return
			}
			seen[typ] = true
			for i := range typ.NumField() {
				field := typ.Field(i)
				if !field.IsExported() || field.Tag.Get("json") == "-" {
					continue
				}
				key, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				if !regexp.MustCompile(`^[a-z][A-Za-z0-9]*$`).MatchString(key) {
					t.Errorf("%s.%s has the key %q, want camel case", typ, field.Name, key)
				}
				walk(field.Type)
			}
		}
	}
	for _, v := range printed {
		walk(reflect.TypeOf(v))
	}
	calls := 0
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") {
			calls += strings.Count(string(data), "p.print(c, ")
		}
	}
	if calls != len(printed) {
		t.Errorf("%d commands print JSON, and this test knows %d types: add the new one", calls, len(printed))
	}
}

func TestPrint_NoneIsAnEmptyList(t *testing.T) {
	set := goflag.NewFlagSet("", goflag.ContinueOnError)
	set.String("output", "json", "")
	for _, v := range printed {
		if reflect.TypeOf(v).Kind() != reflect.Slice {
			continue
		}
		var out bytes.Buffer
		p := program{stdout: &out}
		if err := p.print(cli.NewContext(nil, set, nil), v, nil); err != nil || out.String() != "[]\n" {
			t.Errorf("%T prints %q, %v; want an empty list", v, out.String(), err)
		}
	}
}
