package datadir

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Processes that look, as `mote status` does, do not keep one from starting.
func TestOpen_WhileOthersLook(t *testing.T) {
	path := t.TempDir()
	stop := make(chan struct{})
	var lookers sync.WaitGroup
	for range 4 {
		lookers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if pid, err := Holder(path); err != nil || pid != 0 && pid != os.Getpid() {
					t.Errorf("holder is %d, %v; want this process or none", pid, err)
				}
			}
		})
	}
	for range 200 {
		d, err := Open(path, now)
		if err != nil {
			t.Errorf("open while others look: %v", err)
			break
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	lookers.Wait()
}

// Of several that start at once, exactly one gets the folder, also while what an abandoned start
// made is removed.
func TestOpen_OneOfMany(t *testing.T) {
	path := t.TempDir()
	for range 50 {
		var mu sync.Mutex
		var got []*Dir
		var starters sync.WaitGroup
		for range 4 {
			starters.Go(func() {
				d, err := Open(path, now)
				if err != nil {
					if !errors.Is(err, ErrInUse) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, d)
			})
		}
		starters.Wait()
		if len(got) != 1 {
			t.Fatalf("%d have the folder, want 1", len(got))
		}
		if err := got[0].Abandon(); err != nil {
			t.Fatal(err)
		}
	}
}

// An earlier version holds the lock in the same way, and may be looked at and kept out for.
func TestHolder_OfEarlierVersion(t *testing.T) {
	path := t.TempDir()
	f, err := os.Create(At(path).lockFile())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(strconv.Itoa(os.Getpid()) + "\n"); err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(path); err != nil || pid != os.Getpid() {
		t.Errorf("holder is %d, %v; want this process", pid, err)
	}
	if _, err := Open(path, now); !errors.Is(err, ErrInUse) {
		t.Errorf("open: %v, want ErrInUse", err)
	}
}

// Between taking the lock and writing its number, a starting mote holds a file that still has the
// last one's, which may be anybody's by now.
func TestHolder_NumberOfTheLastHolder(t *testing.T) {
	path := t.TempDir()
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	f, err := os.Create(At(path).lockFile())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strconv.Itoa(stranger.Process.Pid) + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(path); pid != 0 || !errors.Is(err, ErrInUse) {
		t.Errorf("holder is %d, %v; want ErrInUse and nobody to stop", pid, err)
	}
}

// Who wants to run counts, and who only looks does not.
func TestDir_RestartRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(path string) error
		want bool
	}{
		{"a mote that starts", func(path string) error {
			_, err := Open(path, now)
			return err
		}, true},
		{"mote status", func(path string) error {
			_, err := Holder(path)
			return err
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := t.TempDir()
			d, err := Lock(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan struct{})
			stop := make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
						_ = test.do(path)
					}
				}
			}()
			if !test.want {
				ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
			}
			got, err := d.RestartRefused(ctx)
			close(stop)
			<-done
			if got != test.want || err != nil {
				t.Errorf("%v, %v; want %v", got, err, test.want)
			}
		})
	}
}
