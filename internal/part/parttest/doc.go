// Package parttest owns the check that the documentation shows a role's table of parts. Only tests
// may import it.
//
// It must not import anything else of this repository but internal/part.
package parttest
