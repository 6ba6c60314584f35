package join

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/internal/joinapi"
)

// Wrong tokens are soon answered without saying anything about them. A valid one is let in all the
// same: the machine that guesses, or has an old token, may be behind the same NAT.
func TestService_Join_BruteForce(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	request := f.joining(t, "n1", secretA)
	var mu sync.Mutex
	codes := map[joinapi.Code]int{}
	var group sync.WaitGroup
	for i := range 3 * failuresOfAddress {
		// All at once: comparing many at a time must not outrun the count.
		group.Go(func() {
			got := f.post(t, joinapi.PathJoin, fmt.Sprintf("abcdef.%016d", i), request)
			mu.Lock()
			defer mu.Unlock()
			codes[got.refusal.Code]++
		})
	}
	group.Wait()
	if codes[joinapi.CodeTokenInvalid] != failuresOfAddress ||
		codes[joinapi.CodeTooManyRequests] != 2*failuresOfAddress {
		t.Errorf("answers are %v, want %d that say the token is wrong", codes, failuresOfAddress)
	}
	for _, row := range []struct {
		name, token, node, secret string
		want                      joinapi.Code
	}{
		{"the right one", testToken, "n1", secretA, ""},
		{"the same machine again", testToken, "n1", secretA, ""},
		{"the right one, under another machine's name", testToken, "n1", secretB, joinapi.CodeTooManyRequests},
		{"the right one after that, under a free name", testToken, "n2", secretB, ""},
		{"a wrong one", "abcdef.0123456789abcdeg", "n1", secretA, joinapi.CodeTooManyRequests},
		{"one of an id there is not", "fedcba.0123456789abcdef", "n1", secretA, joinapi.CodeTooManyRequests},
		{"none", "", "n1", secretA, joinapi.CodeTooManyRequests},
	} {
		got := f.post(t, joinapi.PathJoin, row.token, f.joining(t, row.node, row.secret))
		if got.refusal.Code != row.want {
			t.Errorf("%s: status %d, %+v; want %q", row.name, got.status, got.refusal, row.want)
		}
	}
}

// A valid token is let in whatever was tried from everywhere before, as often as its owner likes.
func TestService_Join_BruteForce_FromEverywhere(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	wrong := func() (bool, error) { return false, nil }
	for i := range 2 * failuresOfAll {
		from := origin(fmt.Sprintf("[2001:db8:0:%x::1]:1", i))
		if _, _, err := f.joins.attempt(t.Context(), from, wrong); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * failuresOfAddress {
		if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n1", secretA)); got.status != http.StatusOK {
			t.Fatalf("status %d, %+v", got.status, got.refusal)
		}
	}
}

// A password can be guessed, so after too many wrong ones it has to stand in line. It waits behind
// wrong passwords alone, not behind wrong tokens.
func TestService_Join_BruteForce_Password(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Password = "correct-horse" }, withToken(nil))
	for i := range 3 * failuresOfAddress {
		f.post(t, joinapi.PathJoin, fmt.Sprintf("abcdef.%016d", i), f.joining(t, "n1", secretA))
	}
	if got := f.post(t, joinapi.PathJoin, "correct-horse", f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Errorf("the password after wrong tokens: status %d, %+v", got.status, got.refusal)
	}
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n2", secretA)); got.status != http.StatusOK {
		t.Errorf("a token after that: status %d, %+v", got.status, got.refusal)
	}
}

// Past the limits one guessable secret a second is checked of an address and four of all, in the
// order they came; a few wait, the others are refused unread. The right one is let in.
func TestLimiter_AttemptGuessable_StandsInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(time.Now)
		start, checked := time.Now(), 0
		guess := func(from string, right bool) (ok, tooMany bool) {
			ok, tooMany, err := l.attemptGuessable(t.Context(), origin(from), func() (bool, error) {
				checked++
				return right, nil
			})
			if err != nil {
				t.Error(err)
			}
			return ok, tooMany
		}
		for range failuresOfAddress {
			guess("192.0.2.1:1", false)
		}
		if checked != failuresOfAddress || time.Since(start) > 0 {
			t.Fatalf("%d were checked in %s, want the first %d at once", checked, time.Since(start), failuresOfAddress)
		}
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() { guess("192.0.2.1:1", false) })
		}
		synctest.Wait()
		if ok, _ := guess("192.0.2.2:1", true); !ok {
			t.Error("another address is not let in")
		}
		group.Wait()
		line := int(lateWait/lateInterval) + 1
		if most := failuresOfAddress + line + 1; checked > most || time.Since(start) > lateWait {
			t.Errorf("%d were checked in %s, want at most %d", checked, time.Since(start), most)
		}
		time.Sleep(lateInterval)
		before := time.Now()
		if ok, _ := guess("192.0.2.1:1", true); !ok {
			t.Errorf("the right one is not let in after %s", time.Since(before))
		}
		// All addresses together.
		checked = 0
		for i := range 5 * failuresOfAll {
			group.Go(func() { guess(fmt.Sprintf("10.0.%d.%d:1", i>>8, i&255), false) })
		}
		group.Wait()
		if most := failuresOfAll + int(lateWait/lateIntervalOfAll) + int(lateWait/allRecover) + 1; checked > most {
			t.Errorf("%d of all addresses were checked, want at most %d", checked, most)
		}
	})
}

func TestService_Rejoin_BruteForce(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Fatalf("status %d, %+v", got.status, got.refusal)
	}
	for i := range failuresOfAddress {
		if got := f.post(t, joinapi.PathRejoin, "",
			f.joining(t, "n1", fmt.Sprintf("%064d", i))); got.refusal.Code != joinapi.CodeNodeUnknown {
			t.Fatalf("attempt %d: status %d, %+v", i, got.status, got.refusal)
		}
	}
	if got := f.post(t, joinapi.PathRejoin, "",
		f.joining(t, "n1", secretB)); got.refusal.Code != joinapi.CodeTooManyRequests {
		t.Errorf("another wrong one: status %d, %+v", got.status, got.refusal)
	}
	if got := f.post(t, joinapi.PathRejoin, "", f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Errorf("the node itself, behind the same NAT: status %d, %+v", got.status, got.refusal)
	}
	// Who guesses there keeps nobody from joining.
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Errorf("with a token: status %d, %+v", got.status, got.refusal)
	}
}

func TestLimiter_Attempt_FromEverywhere(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(func() time.Time { return now })
	wrong := func() (bool, error) { return false, nil }
	looked := 0
	for i := range 50_000 {
		_, tooMany, err := l.attempt(t.Context(), origin(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)), wrong)
		if err != nil {
			t.Fatal(err)
		}
		if !tooMany {
			looked++
		}
	}
	if looked != failuresOfAll {
		t.Errorf("%d secrets were looked at, want %d", looked, failuresOfAll)
	}
	if len(l.addresses) > maxAddresses+1 {
		t.Errorf("%d addresses are remembered, want at most %d", len(l.addresses), maxAddresses+1)
	}
	now = now.Add(10 * allRecover)
	for i := range 20 {
		if _, tooMany, _ := l.attempt(t.Context(), origin(fmt.Sprintf("10.99.0.%d:1", i)),
			wrong); tooMany != (i >= 10) {
			t.Errorf("attempt %d after ten have come back: too many: %v", i, tooMany)
		}
	}
}

// What strangers do fills neither the log nor the memory.
func TestService_Refusals_AreToldSeldom(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	f := newFixture(t, func(c *Config) { c.Logger = zap.New(core) }, withToken(nil))
	for range 2 * failuresOfAddress {
		f.post(t, joinapi.PathJoin, "fedcba.0123456789abcdef", f.joining(t, "n1", secretA))
	}
	// Wrong tokens, and then too many of them.
	if got := logs.FilterMessage("refused a node").Len(); got != 2 {
		t.Errorf("the log has %d lines, want 2", got)
	}
	for _, e := range logs.All() {
		if strings.Contains(fmt.Sprint(e.ContextMap()), "0123456789abcdef") {
			t.Errorf("the log has a token: %v", e.ContextMap())
		}
	}
	f.later(logInterval)
	f.post(t, joinapi.PathJoin, "fedcba.0123456789abcdef", f.joining(t, "n1", secretA))
	if got := logs.FilterMessage("refused a node").Len(); got != 3 {
		t.Errorf("a minute later the log has %d lines, want 3", got)
	}
	for i := range 2 * maxLogged {
		f.due(refused{from: origin(fmt.Sprintf("10.0.%d.%d:1", i>>8, i&255))})
	}
	if len(f.logged) > maxLogged {
		t.Errorf("%d refusals are remembered, want at most %d", len(f.logged), maxLogged)
	}
}

func TestLimiter_Attempt_RightOnesAreNotCounted(t *testing.T) {
	l := newLimiter(time.Now)
	for i := range 10 * failuresOfAll {
		if ok, tooMany, err := l.attempt(t.Context(), origin("192.0.2.1:1"),
			func() (bool, error) { return true, nil }); !ok || tooMany || err != nil {
			t.Fatalf("attempt %d: %v, %v, %v", i, ok, tooMany, err)
		}
	}
}

func TestLimiter_Enter(t *testing.T) {
	l := newLimiter(time.Now)
	var leaves []func()
	for i := range maxOpenOfAddress {
		leave, ok := l.enter(origin("192.0.2.1:1"))
		if !ok {
			t.Fatalf("request %d is too many", i)
		}
		leaves = append(leaves, leave)
	}
	if _, ok := l.enter(origin("192.0.2.1:2")); ok {
		t.Error("an address may have more requests open than it should")
	}
	for i := range maxOpen - maxOpenOfAddress {
		if _, ok := l.enter(origin(fmt.Sprintf("[2001:db8:0:%x::1]:1", i))); !ok {
			t.Fatalf("request %d of others is too many", i)
		}
	}
	if _, ok := l.enter(origin("192.0.2.2:1")); ok {
		t.Error("more requests are open than should be")
	}
	leaves[0]()
	if _, ok := l.enter(origin("192.0.2.2:1")); !ok {
		t.Error("a request that is over still counts")
	}
}

func TestOrigin(t *testing.T) {
	for _, row := range []struct{ a, b string }{
		{"192.0.2.1:1", "192.0.2.1:2"}, {"192.0.2.1:1", "[::ffff:192.0.2.1]:1"},
		{"[2001:db8::1]:1", "[2001:db8::ffff]:2"}, {"[fe80::1%eth0]:1", "[fe80::2%eth1]:1"},
	} {
		if origin(row.a) != origin(row.b) || !origin(row.a).IsValid() {
			t.Errorf("%s and %s are %s and %s, want one", row.a, row.b, origin(row.a), origin(row.b))
		}
	}
	if origin("192.0.2.1:1") == origin("192.0.2.2:1") ||
		origin("[2001:db8:0:1::1]:1") == origin("[2001:db8:0:2::1]:1") {
		t.Error("different addresses count as one")
	}
}
