package kubelet

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mote-dev/mote/internal/wallclock"
)

// currentServing is the file by which upstream's certificate manager finds the
// serving certificate it was given last.
const currentServing = "kubelet-server-current.pem"

// dropFutureServing has the kubelet ask for another serving certificate if the one
// it has is not valid yet, as happens when the clocks were ahead when it was
// signed. Upstream looks at the end of a certificate only. A clock that was never
// set cannot tell.
func dropFutureServing(dir string, now time.Time) error {
	if now.Before(wallclock.Floor) {
		return nil
	}
	file := filepath.Join(dir, currentServing)
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil || !now.Before(pair.Leaf.NotBefore) {
		// What cannot be read upstream replaces.
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop serving certificate of the future: %w", err)
	}
	return nil
}
