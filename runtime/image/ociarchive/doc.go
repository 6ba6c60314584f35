// Package ociarchive owns the writing of small OCI image archives: one image with one layer, from
// files in memory or on disk, as the pause image and the test images need.
//
// It must not import anything else of this repository.
package ociarchive
