package giveback

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRun_GivesBackWhenWorkHasDiedDown(t *testing.T) {
	const quiet, work = 1 << 20, 400 << 20
	for name, row := range map[string]struct {
		// allocated are the bytes of each interval; the last goes on.
		allocated []uint64
		// want are the seconds of the releases, in ten minutes.
		want []int
	}{
		"nothing after the start": {[]uint64{quiet}, []int{30, 105}},
		"a load of 90 seconds":    {append(repeat(work, 18), quiet), []int{120, 195}},
		"two loads": {
			slices.Concat(repeat(work, 18), repeat(quiet, 24), repeat(work, 18), repeat(quiet, 1)),
			[]int{120, 195, 330, 405},
		},
		"a load without end": {repeat(work, 1), nil},
		"the caches' own work after a load": {
			slices.Concat(repeat(work, 18), repeat(quiet, 15), repeat(work/3, 3), repeat(quiet, 1)),
			[]int{120, 195},
		},
		"much work, then less without end": {append(repeat(work, 18), work/4), []int{120, 195}},
		"less than much work":              {repeat(busy-1, 1), []int{30, 105}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var got []int
				i, sum := 0, uint64(0)
				allocated := func() uint64 {
					if i > 0 {
						sum += row.allocated[min(i-1, len(row.allocated)-1)]
					}
					i++
					return sum
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				var running sync.WaitGroup
				running.Go(func() {
					run(ctx, allocated, func() { got = append(got, int(time.Since(begin).Seconds())) })
				})
				running.Wait()
				if !slices.Equal(got, row.want) {
					t.Errorf("gave back after %v seconds, want %v", got, row.want)
				}
			})
		})
	}
}

func repeat(n uint64, times int) []uint64 { return slices.Repeat([]uint64{n}, times) }

// The runtime renames its metrics now and then, and reads an unknown one as nothing.
func TestAllocated_CountsObjects(t *testing.T) {
	before := allocated()
	var kept [][]byte
	for range 100 {
		kept = append(kept, make([]byte, 1<<20))
	}
	if step := allocated() - before; step < 100<<20 {
		t.Errorf("%d bytes for %d MiB", step, len(kept))
	}
}
