// Package ociarchive owns the writing of small OCI image archives: one image of
// one layer, from files in memory or on disk, as the pause image and the test
// images need. It must not import other packages of mote or anything of
// containerd.
package ociarchive
