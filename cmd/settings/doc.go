// Package settings owns where a setting's value comes from: the command line, then the environment,
// then the configuration files, then the default. What a value means is decided by its reader.
//
// It must not import anything else of this repository.
package settings
