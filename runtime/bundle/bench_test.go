package bundle

import (
	"path/filepath"
	"testing"
)

// BenchmarkUnpack writes the real bundle, as the first start does.
func BenchmarkUnpack(b *testing.B) {
	if _, err := ReadManifest(); err != nil {
		b.Skip(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := Unpack(Options{Dir: filepath.Join(b.TempDir(), "bin")}); err != nil {
			b.Fatal(err)
		}
	}
}
