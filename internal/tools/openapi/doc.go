// Command openapi makes server/openapi/data/openapi.zip from an API server that
// builds its OpenAPI documents itself. scripts/openapi starts one.
// It must not import anything of mote but server/openapi.
package main
