// Package openapi owns the OpenAPI documents of the API server. Those of the built-in APIs are
// generated when mote is built and served from the executable; those of custom resources are built
// on request.
//
// Upstream builds all documents at start and keeps them in memory, in several forms: about half of
// the live heap of an idle API server.
//
// It must not import anything else of this repository.
package openapi
