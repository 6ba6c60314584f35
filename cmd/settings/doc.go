// Package settings owns where a setting's value comes from: the command line,
// then the environment, then the configuration files, then the default.
//
// It must not import any other package of mote; what a value means is decided
// by who asks for it.
package settings
