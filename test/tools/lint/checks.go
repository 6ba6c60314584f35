package main

import (
	"go/ast"
	"go/token"

	"github.com/golangci/misspell"
	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/analysis/lint"
)

// checks are staticcheck's but the unwanted.
func checks(list []*lint.Analyzer) []*analysis.Analyzer {
	var wanted []*analysis.Analyzer
	for _, a := range list {
		if _, ok := unwanted[a.Analyzer.Name]; !ok && !a.Doc.NonDefault {
			wanted = append(wanted, excepted(a.Analyzer))
		}
	}
	return wanted
}

// misspelling reports words in comments and strings that are commonly misspelled in any English.
var misspelling = &analysis.Analyzer{
	Name: "misspell",
	Doc:  "find commonly misspelled words in comments and strings",
	Run: func(pass *analysis.Pass) (any, error) {
		words := misspell.New()
		words.Compile()
		look := func(pos token.Pos, text string) {
			_, found := words.Replace(text)
			for _, f := range found {
				pass.Reportf(pos, "%q is a misspelling of %q", f.Original, f.Corrected)
			}
		}
		for _, file := range pass.Files {
			for _, group := range file.Comments {
				for _, c := range group.List {
					look(c.Pos(), c.Text)
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING {
					look(s.Pos(), s.Value)
				}
				return true
			})
		}
		return nil, nil
	},
}
