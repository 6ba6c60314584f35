package image_test

import (
	"os"
	"testing"

	"github.com/mote-dev/mote/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	runtimetest.Main()
	os.Exit(m.Run())
}
