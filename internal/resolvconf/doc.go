// Package resolvconf owns the files that name the host's resolvers: where they are, and what they
// say.
//
// It must not import anything else of this repository.
package resolvconf
