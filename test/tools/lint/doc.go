// Command lint is the linters of `make lint` as one tool for `go vet -vettool`: errcheck,
// errorlint, staticcheck and misspell. Run that way, Go caches their result per package.
//
// Each package is analysed alone, with the types of its dependencies from the build cache. With
// staticcheck's facts about dependencies it would type-check Kubernetes first, which takes many
// minutes and gigabytes. What is lost: uses of functions that Kubernetes calls deprecated, and
// checks that must know which functions do not return.
//
// It must not import anything else of this repository.
package main
