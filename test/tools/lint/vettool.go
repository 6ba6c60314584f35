package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/checker"
	"golang.org/x/tools/go/packages"
)

// config is what go vet writes for its tool: see vetConfig in cmd/go/internal/work/exec.go.
type config struct {
	ID, Dir, ImportPath, GoVersion string
	GoFiles                        []string
	ImportMap                      map[string]string
	PackageFile                    map[string]string
	VetxOnly                       bool
	VetxOutput                     string
}

// check analyses one package and reports whether anything was found, printed as go vet wants it.
// unitchecker of x/tools does the same with facts, for which it reads the source of every
// dependency; export data is in the build cache anyway.
func check(name string, analyzers []*analysis.Analyzer) (bool, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return false, err
	}
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	// There are no facts, but go vet caches the file.
	if err := os.WriteFile(c.VetxOutput, []byte("no facts"), 0o666); err != nil {
		return false, err
	}
	if c.VetxOnly {
		return false, nil
	}
	pkg, err := load(c)
	if err != nil {
		return false, err
	}
	graph, err := checker.Analyze(analyzers, []*packages.Package{pkg}, nil)
	if err != nil {
		return false, err
	}
	found := false
	for _, act := range graph.Roots {
		if act.Err != nil {
			return false, fmt.Errorf("%s: %s: %w", c.ImportPath, act.Analyzer.Name, act.Err)
		}
		for _, d := range act.Diagnostics {
			found = true
			fmt.Fprintf(os.Stderr, "%s: %s\n", pkg.Fset.Position(d.Pos), d.Message)
		}
	}
	return found, nil
}

func load(c config) (*packages.Package, error) {
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range c.GoFiles {
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	compiled := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(c.PackageFile[path])
	})
	sizes := types.SizesFor("gc", os.Getenv("GOARCH"))
	if sizes == nil {
		sizes = types.SizesFor("gc", "amd64")
	}
	conf := types.Config{
		Importer: importerFunc(func(path string) (*types.Package, error) {
			if path == "unsafe" {
				return types.Unsafe, nil
			}
			if mapped, ok := c.ImportMap[path]; ok {
				path = mapped
			}
			return compiled.Import(path)
		}),
		Sizes:     sizes,
		GoVersion: c.GoVersion,
	}
	info := &types.Info{
		Types:        map[ast.Expr]types.TypeAndValue{},
		Defs:         map[*ast.Ident]types.Object{},
		Uses:         map[*ast.Ident]types.Object{},
		Implicits:    map[ast.Node]types.Object{},
		Instances:    map[*ast.Ident]types.Instance{},
		Scopes:       map[ast.Node]*types.Scope{},
		Selections:   map[*ast.SelectorExpr]*types.Selection{},
		FileVersions: map[*ast.File]string{},
	}
	pkg, err := conf.Check(c.ImportPath, fset, files, info)
	if err != nil {
		return nil, err
	}
	return &packages.Package{
		ID:              c.ID,
		Name:            pkg.Name(),
		PkgPath:         c.ImportPath,
		Dir:             c.Dir,
		GoFiles:         c.GoFiles,
		CompiledGoFiles: c.GoFiles,
		Fset:            fset,
		Syntax:          files,
		Types:           pkg,
		TypesInfo:       info,
		TypesSizes:      sizes,
		Imports:         map[string]*packages.Package{},
	}, nil
}

type importerFunc func(string) (*types.Package, error)

func (f importerFunc) Import(path string) (*types.Package, error) { return f(path) }

// printVersion prints what go vet tells versions of its tool apart by.
func printVersion() error {
	name, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	fmt.Printf("%s version devel comments-go-here buildID=%x\n", name, sha256.Sum256(data))
	return nil
}
