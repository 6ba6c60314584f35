// Command openapi makes server/openapi/data/openapi.zip from an API server that builds its OpenAPI
// documents itself. scripts/openapi starts one.
//
// It must not import anything else of this repository but server/openapi.
package main
