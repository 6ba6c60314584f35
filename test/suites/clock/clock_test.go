package clock

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// longOff is after the end of every certificate but the CAs.
const longOff = 400 * day

// TestOn keeps a server running for years. Each time its certificates come near their end it makes
// others.
func TestOn(t *testing.T) {
	m := newMachine(t, 0)
	m.begin(t)
	ids := m.containers(t)
	for _, off := range []time.Duration{
		250 * day, // a third of a year is left
		500 * day, // again
		900 * day, // they have ended: the machine slept, or its clock was behind
	} {
		t.Run(fmt.Sprintf("day %d", off/day), func(t *testing.T) {
			old := m.serials(t)
			m.setClock(t, off)
			m.allNew(t, old, 60*time.Second)
			m.serves(t, 60*time.Second)
		})
	}
	m.works(t, 120*time.Second)
	if got := m.containers(t); got != ids {
		t.Errorf("containers are %s, before %s", got, ids)
	}
}

// TestOff switches a machine off for 400 days, then until a year before its CA ends, then beyond.
func TestOff(t *testing.T) {
	m := newMachine(t, 0)
	m.begin(t)
	config := m.fileSum(t, m.kubeconfig)

	m.sleepUntil(t, longOff)
	m.launch(t)
	m.works(t, 90*time.Second)
	if m.fileSum(t, m.kubeconfig) == config {
		t.Error("the kubeconfig is still the old one")
	}

	m.sleepUntil(t, 29*year+day)
	m.launch(t)
	m.works(t, 90*time.Second)
	if !strings.Contains(m.Tail(100), "certificate authority ends") {
		t.Errorf("nothing is said of the CA, which ends within a year\n%s", m.Tail(20))
	}

	m.sleepUntil(t, 30*year+day)
	keys := m.keys(t)
	m.launch(t)
	select {
	case <-m.Exited():
	case <-time.After(30 * time.Second):
		t.Fatal("mote runs although its CA has ended")
	}
	if code := m.State().ExitCode(); code != 1 {
		t.Errorf("mote ended with code %d, want 1", code)
	}
	said := m.Tail(1)
	t.Log("after the CA's end it says:", said)
	for _, want := range []string{"certificate authority has ended", m.now().UTC().Format("2006-01-02"),
		"docs/certificates.md"} {
		if !strings.Contains(said, want) {
			t.Errorf("the last line lacks %q", want)
		}
	}
	if got := m.keys(t); got != keys {
		t.Error("keys or certificates were changed")
	}

	// Somebody sets the clock right, and nothing has happened.
	m.powerOff(t)
	m.off = longOff
	m.launch(t)
	m.works(t, 90*time.Second)
}

// TestBattery starts a machine without a battery for the first time: it is 1970 until the network
// tells better.
func TestBattery(t *testing.T) {
	m := newMachine(t, since(time.Unix(600, 0)))
	m.begin(t)
	ids, ready := m.containers(t), m.readySince(t)

	begin := time.Now()
	m.setClock(t, 0)
	m.works(t, 120*time.Second)
	m.stayedReady(t, ready, begin)
	if got := m.containers(t); got != ids {
		t.Errorf("containers are %s, before %s", got, ids)
	}

	m.Stop(t)
	m.launch(t)
	m.works(t, 60*time.Second)
}

// TestAhead starts a machine whose clock is three years ahead, and sets it right while it runs.
func TestAhead(t *testing.T) {
	m := newMachine(t, 3*year)
	m.begin(t)
	ids, old, ready := m.containers(t), m.serials(t), m.readySince(t)

	begin := time.Now()
	m.setClock(t, 0)
	m.allNew(t, old, 60*time.Second)
	m.works(t, 60*time.Second)
	m.stayedReady(t, ready, begin)
	if got := m.containers(t); got != ids {
		t.Errorf("containers are %s, before %s", got, ids)
	}
	// A container that ends now is older, by the clock, than the one in its place.
	if _, err := m.kubectl(t.Context(), "", "exec", "deploy/old", "--", "touch", "/tmp/end"); err != nil {
		t.Fatal(err)
	}
	m.eventually(t, 60*time.Second, "another container", func(context.Context, *kubernetes.Clientset) error {
		if m.containers(t) == ids {
			return errors.New("it is the old one")
		}
		return nil
	})
	m.works(t, 60*time.Second)
	if n := m.restarts(t); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}

	// And once more, while it is off.
	m.sleepUntil(t, 3*year)
	m.launch(t)
	m.works(t, 60*time.Second)
	m.sleepUntil(t, 0)
	m.launch(t)
	m.works(t, 60*time.Second)
}

// patience is longer than the controller waits for a heartbeat.
const patience = 65 * time.Second

// readySince is when the node became Ready, by what it said then.
func (m *machine) readySince(t *testing.T) time.Time {
	t.Helper()
	client, done, err := m.client()
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	ready, err := readyCondition(t.Context(), client, nodeName)
	if err != nil {
		t.Fatal(err)
	}
	return ready.LastTransitionTime.Time
}

// stayedReady wants the node Ready without a break since, until patience is over.
func (m *machine) stayedReady(t *testing.T, since, begin time.Time) {
	t.Helper()
	m.eventually(t, patience+10*time.Second, "node ready all the time",
		func(ctx context.Context, client *kubernetes.Clientset) error {
			ready, err := readyCondition(ctx, client, nodeName)
			if err != nil {
				return err
			}
			if ready.Status != corev1.ConditionTrue || !ready.LastTransitionTime.Time.Equal(since) {
				t.Fatalf("%v after the clock was set the node is ready: %s since %v, want since %v: %s\n%s",
					time.Since(begin).Round(time.Second),
					ready.Status, ready.LastTransitionTime, since, ready.Message, m.Tail(20))
			}
			if left := patience - time.Since(begin); left > 0 {
				return fmt.Errorf("%v to go", left.Round(time.Second))
			}
			return nil
		})
}

// containers is the id of the workload's container.
func (m *machine) containers(t *testing.T) string { return m.status(t).ContainerID }

func (m *machine) restarts(t *testing.T) int32 { return m.status(t).RestartCount }

// status is what is known of the workload's container.
func (m *machine) status(t *testing.T) corev1.ContainerStatus {
	t.Helper()
	client, done, err := m.client()
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	pod, err := m.pod(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if len(pod.Status.ContainerStatuses) != 1 {
		t.Fatal(errors.New("pod has no container"))
	}
	return pod.Status.ContainerStatuses[0]
}

func (m *machine) fileSum(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// keys is a sum of all keys and certificates of the server.
func (m *machine) keys(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.dataDir, "server", "tls", "*"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d keys and certificates, want 10 at least (%v)", len(files), err)
	}
	var all strings.Builder
	for _, f := range files {
		fmt.Fprintln(&all, f, m.fileSum(t, f))
	}
	return all.String()
}
