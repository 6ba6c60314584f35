package part

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// journal is the role of these tests: it notes what parts do, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) index(t *testing.T, line string) int {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.lines, line)
	if i < 0 {
		t.Fatalf("%q is not in %q", line, j.lines)
	}
	return i
}

// plain is a part that runs until it is stopped.
func plain(name string, needs ...string) Part[*journal] {
	return Part[*journal]{Name: name, Needs: needs, New: func(_ context.Context, j *journal, _ Lead) (Running, error) {
		j.note("new " + name)
		return Running{Run: func(ctx context.Context) error {
			<-ctx.Done()
			j.note("end " + name)
			return ctx.Err()
		}}, nil
	}}
}

func start(t *testing.T, table []Part[*journal], o Options) (*Set[*journal], *journal, context.CancelFunc,
	<-chan error) {
	t.Helper()
	j := &journal{}
	s, err := NewSet(j, table, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, j, cancel, done
}

func states(s *Set[*journal]) string {
	var out []string
	for _, st := range s.Report() {
		text := st.Name + " " + string(st.State)
		if st.Detail != "" {
			text += " (" + st.Detail + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestSet_Run_NeedsComeFirstAndGoLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := make(chan struct{})
		slow := plain("store")
		make := slow.New
		slow.New = func(ctx context.Context, j *journal, l Lead) (Running, error) {
			r, err := make(ctx, j, l)
			r.Ready = ready
			return r, err
		}
		s, j, cancel, done := start(t,
			[]Part[*journal]{slow, plain("api", "store"), plain("clock"), plain("node", "api", "clock")}, Options{})
		synctest.Wait()
		if got, want := states(s), "store starting, api waiting (store), clock ready, node waiting (api)"; got != want {
			t.Errorf("states are %s, want %s", got, want)
		}
		close(ready)
		synctest.Wait()
		if got, want := states(s), "store ready, api ready, clock ready, node ready"; got != want {
			t.Errorf("states are %s, want %s", got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("asked to stop, it returned %v", err)
		}
		for _, pair := range [][2]string{{"new store", "new api"}, {"new api", "new node"}, {"end node", "end api"},
			{"end api", "end store"}, {"end node", "end clock"}} {
			if j.index(t, pair[0]) > j.index(t, pair[1]) {
				t.Errorf("%s came after %s: %q", pair[0], pair[1], j.lines)
			}
		}
	})
}

func TestSet_Run_FirstCauseWinsAndNamesItsPart(t *testing.T) {
	broken := errors.New("disk is on fire")
	for _, row := range []struct {
		name string
		part func() Part[*journal]
		want string
		is   error
	}{
		{"making it fails", func() Part[*journal] {
			p := plain("service-proxy", "store")
			p.New = func(context.Context, *journal, Lead) (Running, error) { return Running{}, broken }
			return p
		}, "service proxy: disk is on fire", broken},
		{"running it fails", func() Part[*journal] {
			p := plain("service-proxy", "store")
			p.New = func(context.Context, *journal, Lead) (Running, error) {
				return Running{Run: func(context.Context) error { return broken }}, nil
			}
			return p
		}, "service proxy: disk is on fire", broken},
		{"it ends by itself", func() Part[*journal] {
			p := plain("service-proxy", "store")
			p.New = func(context.Context, *journal, Lead) (Running, error) {
				return Running{Run: func(context.Context) error { return nil }}, nil
			}
			return p
		}, "service proxy: ended by itself", ErrEnded},
		{"it fails before it is ready", func() Part[*journal] {
			p := plain("service-proxy", "store")
			p.New = func(context.Context, *journal, Lead) (Running, error) {
				return Running{Ready: make(chan struct{}), Run: func(context.Context) error { return broken }}, nil
			}
			return p
		}, "service proxy: disk is on fire", broken},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// What follows from it says other things while it stops.
				loud := plain("kubelet", "store")
				loud.New = func(context.Context, *journal, Lead) (Running, error) {
					return Running{Durable: true, Run: func(ctx context.Context) error {
						<-ctx.Done()
						return errors.New("the informer has stopped already")
					}}, nil
				}
				_, j, _, done := start(t,
					[]Part[*journal]{plain("store"), loud, row.part(), plain("last", "service-proxy")}, Options{})
				err := <-done
				if !errors.Is(err, row.is) || err.Error() != row.want {
					t.Errorf("got %v, want %s", err, row.want)
				}
				j.index(t, "end store")
			})
		})
	}
}

func TestSet_Run_ErrorsOfStopping(t *testing.T) {
	for _, durable := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := plain("store")
			p.New = func(context.Context, *journal, Lead) (Running, error) {
				return Running{Durable: durable, Run: func(ctx context.Context) error {
					<-ctx.Done()
					return errors.New("checkpoint failed")
				}}, nil
			}
			s, _, cancel, done := start(t, []Part[*journal]{p}, Options{})
			synctest.Wait()
			cancel()
			err := <-done
			if (err != nil) != durable {
				t.Errorf("durable %v: %v", durable, err)
			}
			if got := s.Report()[0].State; durable && got != Failed || !durable && got != Stopped {
				t.Errorf("durable %v: state is %s", durable, got)
			}
		})
	}
}

func TestSet_Run_DisabledIsNotMadeAndHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := plain("dns")
		dns.Optional = true
		fixed := plain("store")
		s, j, cancel, done := start(t, []Part[*journal]{fixed, dns, plain("kubelet", "dns")},
			Options{Disable: []string{"dns", "store", "unknown"}})
		synctest.Wait()
		if got, want := states(s), "store ready, dns disabled, kubelet ready"; got != want {
			t.Errorf("states are %s, want %s", got, want)
		}
		if slices.Contains(j.lines, "new dns") {
			t.Error("a disabled part was made")
		}
		cancel()
		<-done
	})
}

func TestSet_Run_LeadDecidesTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		elected, lost := make(chan struct{}), make(chan struct{})
		scheduler := Part[*journal]{Name: "scheduler", Leader: "kube-scheduler",
			New: func(_ context.Context, j *journal, lead Lead) (Running, error) {
				return Running{Run: func(ctx context.Context) error {
					return lead(ctx, func(ctx context.Context) error {
						j.note("schedules")
						<-ctx.Done()
						return nil
					})
				}}, nil
			}}
		lead := func(lease string) Lead {
			if lease != "kube-scheduler" {
				t.Errorf("asked for lease %s", lease)
			}
			return func(ctx context.Context, work func(context.Context) error) error {
				<-elected
				leading, cancel := context.WithCancel(ctx)
				go func() { <-lost; cancel() }()
				if err := work(leading); err != nil {
					return err
				}
				<-ctx.Done()
				return nil
			}
		}
		s, j, cancel, done := start(t, []Part[*journal]{scheduler}, Options{Lead: lead})
		synctest.Wait()
		if got := states(s); got != "scheduler standby" {
			t.Errorf("before the lead: %s", got)
		}
		close(elected)
		synctest.Wait()
		if got := states(s); got != "scheduler ready (leader)" {
			t.Errorf("with the lead: %s", got)
		}
		j.index(t, "schedules")
		close(lost)
		synctest.Wait()
		if got := states(s); got != "scheduler standby" {
			t.Errorf("after the lead: %s", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSet_Run_StopsWhileAPartIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joining := Part[*journal]{Name: "join", New: func(ctx context.Context, _ *journal, _ Lead) (Running, error) {
			<-ctx.Done()
			return Running{}, ctx.Err()
		}}
		_, _, cancel, done := start(t, []Part[*journal]{joining, plain("kubelet", "join")}, Options{})
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("asked to stop while joining: %v", err)
		}
	})
}

func TestSet_Run_OneOffAndIdleParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := Part[*journal]{Name: "objects", New: func(_ context.Context, j *journal, _ Lead) (Running, error) {
			j.note("objects made")
			return Running{}, nil
		}}
		idle := Part[*journal]{Name: "discovery", New: func(context.Context, *journal, Lead) (Running, error) {
			return Running{Idle: "on loopback only"}, nil
		}}
		feature := Part[*journal]{Name: "policy", Needs: []string{"objects"}, Optional: true}
		s, _, cancel, done := start(t,
			[]Part[*journal]{once, idle, feature, plain("last", "objects", "discovery", "policy")}, Options{})
		synctest.Wait()
		if got, want := states(
			s), "objects ready, discovery idle (on loopback only), policy ready, last ready"; got != want {
			t.Errorf("states are %s, want %s", got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got, want := states(s), "objects stopped, discovery stopped, policy stopped, last stopped"; got != want {
			t.Errorf("states are %s, want %s", got, want)
		}
	})
}

func TestNewSet_RefusesBadTables(t *testing.T) {
	for name, table := range map[string][]Part[*journal]{
		"needs a later one": {plain("a", "b"), plain("b")},
		"needs itself":      {plain("a", "a")},
		"two of one name":   {plain("a"), plain("a")},
		"no name":           {plain("")},
		"feature of none":   {{Name: "a"}},
	} {
		if _, err := NewSet(&journal{}, table, Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMarkdown(t *testing.T) {
	scheduler := plain("scheduler", "api")
	scheduler.Purpose, scheduler.Leader = "binds pods to nodes", "kube-scheduler"
	dns := plain("dns", "api")
	dns.Purpose, dns.Optional = "answers names", true
	table := []Part[*journal]{plain("api"), scheduler, dns}
	want := "| part | does | needs | runs on | `--disable` |\n|---|---|---|---|---|\n" +
		"| `api` |  |  | every one |  |\n" +
		"| `scheduler` | binds pods to nodes | api | the leader |  |\n" +
		"| `dns` | answers names | api | every one | yes |\n"
	if got := Markdown(table); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if got := Optional(table); !slices.Equal(got, []string{"dns"}) {
		t.Errorf("optional are %v", got)
	}
}

// What a part cannot do although it works is asked for at each report, and only while it works.
func TestSet_Report_AsksReadyPartsForNotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		note, ready := "no resolver", make(chan struct{})
		dns := plain("dns")
		inner := dns.New
		dns.New = func(ctx context.Context, j *journal, l Lead) (Running, error) {
			r, err := inner(ctx, j, l)
			r.Ready, r.Note = ready, func() string { return note }
			return r, err
		}
		s, _, cancel, done := start(t, []Part[*journal]{dns}, Options{})
		for _, step := range []struct {
			do   func()
			want string
		}{
			{func() {}, "dns starting"},
			{func() { close(ready) }, "dns ready (no resolver)"},
			{func() { note = "" }, "dns ready"},
			{func() { note = "no resolver" }, "dns ready (no resolver)"},
			{cancel, "dns stopped"},
		} {
			step.do()
			synctest.Wait()
			if got := states(s); got != step.want {
				t.Errorf("report is %s, want %s", got, step.want)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
