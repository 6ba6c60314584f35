package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// The limits in columns; a tab counts as four.
const (
	codeWidth    = 120
	commentWidth = 100
)

func width(line string) int {
	return utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    "))
}

// goFile is a parsed file and its lines; lines[0] is line 1.
type goFile struct {
	name  string
	fset  *token.FileSet
	ast   *ast.File
	lines []string
}

// goFiles reads every Go file of the repository that is not generated.
func goFiles(t *testing.T, visit func(goFile)) {
	t.Helper()
	ours(t, func(_ string, files []string) {
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Error(err)
				continue
			}
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, name, data, parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if !ast.IsGenerated(parsed) {
				visit(goFile{
					name:  name,
					fset:  fset,
					ast:   parsed,
					lines: strings.Split(string(data), "\n"),
				})
			}
		}
	})
}

func (f goFile) line(p token.Pos) int { return f.fset.Position(p).Line }

// unbreakable returns the lines that no formatter can break: the inside of raw strings, import
// paths, struct tags and, in tests, literals that are too long for a line of their own.
func (f goFile) unbreakable() map[int]bool {
	lines := map[int]bool{}
	mark := func(n ast.Node) {
		for l := f.line(n.Pos()); l <= f.line(n.End()); l++ {
			lines[l] = true
		}
	}
	test := strings.HasSuffix(f.name, "_test.go")
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			mark(n)
		case *ast.Field:
			if n.Tag != nil {
				mark(n.Tag)
			}
		case *ast.BasicLit:
			raw := n.Kind == token.STRING && n.Value[0] == '`'
			if raw && f.line(n.Pos()) != f.line(n.End()) {
				mark(n)
			}
			line := f.lines[f.line(n.Pos())-1]
			indent := width(line) - width(strings.TrimLeft(line, "\t"))
			if n.Kind == token.STRING && (test || raw) && indent+4+width(n.Value) > codeWidth-1 {
				mark(n)
			}
		}
		return true
	})
	return lines
}

var (
	commentLine = regexp.MustCompile(`^\s*(//|/\*|\*)`)
	// directive is a comment for a tool, which reads one line.
	directive = regexp.MustCompile(`^\s*//([a-z0-9]+:\S|nolint|#)`)
)

// verbatim are the comments whose lines are not prose: those for cgo, and what an example prints.
func (f goFile) verbatim() map[int]bool {
	lines := map[int]bool{}
	for _, g := range f.ast.Comments {
		text := strings.ToLower(g.Text())
		if strings.HasPrefix(text, "output:") || strings.HasPrefix(text, "unordered output:") ||
			strings.Contains(text, "#include") {
			for l := f.line(g.Pos()); l <= f.line(g.End()); l++ {
				lines[l] = true
			}
		}
	}
	return lines
}

// TestFormat_Go_FitsTheWidth holds code to 120 columns and comments on lines of their own to 100.
func TestFormat_Go_FitsTheWidth(t *testing.T) {
	goFiles(t, func(f goFile) {
		unbreakable, verbatim := f.unbreakable(), f.verbatim()
		for i, line := range f.lines {
			limit, what := codeWidth, "code"
			if commentLine.MatchString(line) && !unbreakable[i+1] {
				limit, what = commentWidth, "a comment"
				text := strings.TrimSpace(strings.TrimLeft(line, "/ \t"))
				if verbatim[i+1] || directive.MatchString(line) || !strings.Contains(text, " ") ||
					strings.Contains(line, "://") {
					continue
				}
			}
			if w := width(line); w > limit && !unbreakable[i+1] {
				t.Errorf("%s:%d: %s of %d columns, want %d at most", f.name, i+1, what, w, limit)
			}
		}
	})
}

// TestFormat_Literals_TakeALineAField holds keyed struct literals of more than three fields to one
// field a line: a field is then found by its indentation, and a change of one is one line.
func TestFormat_Literals_TakeALineAField(t *testing.T) {
	goFiles(t, func(f goFile) {
		maps := map[*ast.CompositeLit]bool{}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			c, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			markMaps(c, maps)
			if !maps[c] && f.sharesLines(c) {
				t.Errorf("%s:%d: %d fields share lines: give each its own", f.name, f.line(c.Pos()), len(c.Elts))
			}
			return true
		})
	})
}

// sharesLines reports whether c has names for keys, more than three, and two of them in one line.
func (f goFile) sharesLines(c *ast.CompositeLit) bool {
	if len(c.Elts) <= 3 {
		return false
	}
	shared, last := false, f.line(c.Lbrace)
	for _, e := range c.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		if _, ok := kv.Key.(*ast.Ident); !ok {
			return false
		}
		shared = shared || f.line(e.Pos()) == last
		last = f.line(e.End())
	}
	return shared || f.line(c.Rbrace) == last
}

// markMaps notes c if it is a map, and the literals in it that are maps without saying so.
func markMaps(c *ast.CompositeLit, maps map[*ast.CompositeLit]bool) {
	var element ast.Expr
	switch typ := c.Type.(type) {
	case *ast.MapType:
		maps[c], element = true, typ.Value
	case *ast.ArrayType:
		maps[c], element = true, typ.Elt
	}
	if _, ok := element.(*ast.MapType); !ok {
		return
	}
	for _, e := range c.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			e = kv.Value
		}
		if inner, ok := e.(*ast.CompositeLit); ok && inner.Type == nil {
			maps[inner] = true
		}
	}
}
