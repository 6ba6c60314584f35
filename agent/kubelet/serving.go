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

// currentServing is the link to the latest serving certificate of upstream's certificate manager.
const currentServing = "kubelet-server-current.pem"

// dropFutureServing makes the kubelet request another serving certificate if the present one is not
// valid yet, because the server's clock was ahead when it signed. Upstream only checks the expiry.
// A clock that was never set proves nothing.
func dropFutureServing(dir string, now time.Time) error {
	if now.Before(wallclock.Floor) {
		return nil
	}
	file := filepath.Join(dir, currentServing)
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil || !now.Before(pair.Leaf.NotBefore) {
		// Upstream handles a file that is missing or cannot be read.
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove serving certificate that is not valid yet: %w", err)
	}
	return nil
}
