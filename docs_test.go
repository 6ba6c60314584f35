package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// documents calls visit with the path and text of each Markdown file of the repository.
func documents(t *testing.T, visit func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != "." &&
			(strings.HasPrefix(name, ".") || name == "testdata" || path == "bin" || path == "build") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			visit(filepath.ToSlash(path), string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence        = regexp.MustCompile("(?ms)^\\s*```.*?^\\s*```")
	code         = regexp.MustCompile("`[^`]*`")
)

// anchors are the names that a page's headings can be linked by.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for line := range strings.SplitSeq(fence.ReplaceAllString(text, ""), "\n") {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			found[strings.Map(func(r rune) rune {
				switch {
				case r == ' ':
					return '-'
				case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
					return unicode.ToLower(r)
				}
				return -1
			}, title)] = true
		}
	}
	return found
}

// TestDocs_Links_LeadSomewhere follows the links between documents, headings included.
func TestDocs_Links_LeadSomewhere(t *testing.T) {
	pages := map[string]string{}
	documents(t, func(path, text string) { pages[path] = text })
	for path, text := range pages {
		for _, m := range markdownLink.FindAllStringSubmatch(code.ReplaceAllString(fence.ReplaceAllString(text, ""),
			""), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") {
				continue
			}
			target := path
			if file != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(path), file))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			} else if page, ok := pages[target]; ok && anchor != "" && !anchors(page)[anchor] {
				t.Errorf("%s links to %s, which has no such heading", path, m[1])
			}
		}
	}
}

// Code that a document names, in one of three forms:
//
//	`dir/file.go` (`Name`, `Other`)
//	`dir/file.go`, `Name`
//	`Name` in `dir/file.go`
var (
	namedFile = regexp.MustCompile("`([a-z-]+(?:/[a-z0-9_-]+)*/(?:[a-z0-9_-]+\\.go)?)`")
	after     = regexp.MustCompile("`([a-z-]+(?:/[a-z0-9_-]+)*/[a-z0-9_-]+\\.go)`(?: \\(|, )(`\\w+`(?:, `\\w+`)*)")
	before    = regexp.MustCompile("`(\\w+)` in `([a-z-]+(?:/[a-z0-9_-]+)*/[a-z0-9_-]+\\.go)`")
)

// TestDocs_Code_Exists looks for the files and functions that the architecture and the decisions
// name.
func TestDocs_Code_Exists(t *testing.T) {
	documents(t, func(path, text string) {
		if path != "docs/architecture.md" && !strings.HasPrefix(path, "docs/decisions/") {
			return
		}
		text = strings.Join(strings.Fields(fence.ReplaceAllString(text, "")), " ")
		for _, m := range namedFile.FindAllStringSubmatch(text, -1) {
			at := m[1]
			if _, err := os.Stat(at); err != nil {
				if _, internal := os.Stat(filepath.Join("internal", at)); internal != nil &&
					strings.Count(strings.Trim(at, "/"), "/") > 0 {
					t.Errorf("%s names %s: %v", path, at, err)
				}
			}
		}
		type use struct{ file, name string }
		var uses []use
		for _, m := range after.FindAllStringSubmatch(text, -1) {
			for name := range strings.SplitSeq(m[2], ", ") {
				uses = append(uses, use{m[1], strings.Trim(name, "`")})
			}
		}
		for _, m := range before.FindAllStringSubmatch(text, -1) {
			uses = append(uses, use{m[2], m[1]})
		}
		for _, u := range uses {
			source, err := os.ReadFile(u.file)
			if err != nil {
				t.Errorf("%s names %s: %v", path, u.file, err)
				continue
			}
			declared := regexp.MustCompile(`(?m)^(func (\([^)]*\) )?|type |var |const |\t)` + u.name + `\b`)
			if !declared.Match(source) {
				t.Errorf("%s names %s in %s, which does not declare it", path, u.name, u.file)
			}
		}
	})
}

// TestDocs_Lines_StayNarrow wraps documents at 100 columns, except tables and code.
func TestDocs_Lines_StayNarrow(t *testing.T) {
	const most = 100
	documents(t, func(path, text string) {
		if strings.HasPrefix(path, "test/") {
			return // RESULTS.md is generated
		}
		fenced := false
		for i, line := range strings.Split(text, "\n") {
			switch {
			case strings.HasPrefix(strings.TrimSpace(line), "```"):
				fenced = !fenced
			case fenced, strings.HasPrefix(line, "|"),
				!strings.Contains(code.ReplaceAllString(strings.TrimSpace(line), "code"), " "):
			case utf8.RuneCountInString(line) > most:
				t.Errorf("%s:%d has %d columns, want %d at most", path, i+1, utf8.RuneCountInString(line), most)
			}
		}
	})
}
