// Package openapi owns the OpenAPI documents of the API server: those of the
// built-in APIs are made when mote is built and served from the executable,
// those of custom resources are made when they are asked for.
//
// Upstream builds all documents at start and keeps them, in several forms, for
// as long as it runs: about half of the live heap of an idle API server.
//
// It must not import the packages that compose the API server.
package openapi
