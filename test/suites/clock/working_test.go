package clock

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/test/tools/harness"
)

const nodeName = "node-clock"

const workload = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: old}
spec:
  replicas: 1
  selector: {matchLabels: {app: old}}
  template:
    metadata: {labels: {app: old}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: docker.io/library/busybox:1.36
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "while [ ! -e /tmp/end ]; do date +%s; sleep 1; done"]
`

const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// certificateFiles are those a server with a node keeps, below its data folder.
var certificateFiles = []string{
	"server/tls/apiserver", "server/tls/apiserver-kubelet-client", "server/tls/front-proxy-client", "server/tls/admin",
	"agent/pki/kubelet-serving",
}

// begin starts mote on an empty machine and gives it something to run.
func (m *machine) begin(t *testing.T) {
	t.Helper()
	m.launch(t)
	m.answers(t, 60*time.Second)
	m.mote(t, "image", "import", "--data-dir", m.dataDir, filepath.Join(options.Images, "busybox.tar"))
	eventually(t, 30*time.Second, "workload applied", func(ctx context.Context) error {
		_, err := m.kubectl(ctx, workload, "apply", "-f", "-")
		return err
	})
	m.works(t, 60*time.Second)
}

// answers waits for the API.
func (m *machine) answers(t *testing.T, within time.Duration) {
	t.Helper()
	m.eventually(t, within, "API answers", func(ctx context.Context, client *kubernetes.Clientset) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// works waits until everything is as it should be by the machine's clock.
func (m *machine) works(t *testing.T, within time.Duration) {
	t.Helper()
	m.serves(t, within)
	m.eventually(t, within, "pod's token accepted", m.tokenAccepted)
}

// serves is that without the token of the pod, which a kubelet that runs on looks at about once a
// minute.
func (m *machine) serves(t *testing.T, within time.Duration) {
	t.Helper()
	m.answers(t, within)
	m.eventually(t, within, "node heard of", m.nodeReady)
	eventually(t, within, "certificates valid", func(context.Context) error { return m.certificatesValid() })
	m.eventually(t, within, "pod ready", m.podReady)
	eventually(t, within, "kubectl reaches into the pod", m.podTellsTime)
}

// eventually is the function of that name, with a client for each attempt and an early end when
// mote ends.
func (m *machine) eventually(t *testing.T, within time.Duration, what string,
	check func(context.Context, *kubernetes.Clientset) error) {
	t.Helper()
	eventually(t, within, what, func(ctx context.Context) error {
		if err := m.Alive(); err != nil {
			return err
		}
		client, done, err := m.client()
		if err != nil {
			return err
		}
		defer done()
		return check(ctx, client)
	})
}

// nodeReady wants the node Ready by a heartbeat of the last minute.
func (m *machine) nodeReady(ctx context.Context, client *kubernetes.Clientset) error {
	if err := readyNow(ctx, client, nodeName); err != nil {
		return err
	}
	date, err := heartbeat(ctx, client, nodeName)
	if err != nil {
		return err
	}
	if age := m.now().Sub(date); age.Abs() > time.Minute {
		return fmt.Errorf("the last heartbeat is %v old", age)
	}
	return nil
}

// heartbeat is the date that a node gave its last one.
func heartbeat(ctx context.Context, client *kubernetes.Clientset, name string) (time.Time, error) {
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, err
	}
	return lease.Spec.RenewTime.Time, nil
}

func readyNow(ctx context.Context, client *kubernetes.Clientset, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return harness.NodeReady(node)
}

func readyCondition(ctx context.Context, client *kubernetes.Clientset, name string) (corev1.NodeCondition, error) {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return corev1.NodeCondition{}, err
	}
	return harness.ReadyCondition(node)
}

// certificatesValid looks at what is presented and at what is on disk.
func (m *machine) certificatesValid() error {
	for _, port := range []string{"6443", "10250"} {
		if _, err := m.presented(port); err != nil {
			return err
		}
	}
	for _, name := range certificateFiles {
		cert, err := m.certificate(name)
		if err != nil {
			return err
		}
		if now := m.now(); now.Before(cert.NotBefore) || !now.Before(cert.NotAfter) {
			return fmt.Errorf("%s is valid from %v to %v, not at %v", name, cert.NotBefore, cert.NotAfter, now)
		}
	}
	return nil
}

func (m *machine) certificate(name string) (*x509.Certificate, error) {
	file := filepath.Join(m.dataDir, name)
	pair, err := tls.LoadX509KeyPair(file+".crt", file+".key")
	if err != nil {
		return nil, err
	}
	return pair.Leaf, nil
}

// serials are the numbers of all certificates: which of them are new shows by comparing.
func (m *machine) serials(t *testing.T) map[string]*big.Int {
	t.Helper()
	out := map[string]*big.Int{}
	for _, name := range certificateFiles {
		cert, err := m.certificate(name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = cert.SerialNumber
	}
	for _, port := range []string{"6443", "10250"} {
		cert, err := m.presented(port)
		if err != nil {
			t.Fatal(err)
		}
		out["port "+port] = cert.SerialNumber
	}
	return out
}

// allNew waits until every certificate, on disk and presented, is another than before.
func (m *machine) allNew(t *testing.T, before map[string]*big.Int, within time.Duration) {
	t.Helper()
	eventually(t, within, "certificates renewed", func(context.Context) error {
		for _, name := range certificateFiles {
			cert, err := m.certificate(name)
			if err != nil || cert.SerialNumber.Cmp(before[name]) == 0 {
				return fmt.Errorf("%s is the old one (%v)", name, err)
			}
		}
		for _, port := range []string{"6443", "10250"} {
			cert, err := m.presented(port)
			if err != nil || cert.SerialNumber.Cmp(before["port "+port]) == 0 {
				return fmt.Errorf("port %s presents the old one (%v)", port, err)
			}
		}
		return nil
	})
}

func (m *machine) pod(ctx context.Context, client *kubernetes.Clientset) (*corev1.Pod, error) {
	list, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=old"})
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("%d pods, want 1", len(list.Items))
	}
	return &list.Items[0], nil
}

func (m *machine) podReady(ctx context.Context, client *kubernetes.Clientset) error {
	pod, err := m.pod(ctx, client)
	if err != nil {
		return err
	}
	return harness.PodReady(pod)
}

// podTellsTime asks the container for the time, through API server and kubelet: logs for what it
// says, exec for what it is.
func (m *machine) podTellsTime(ctx context.Context) error {
	for _, args := range [][]string{{"logs", "--tail=1", "deploy/old"}, {"exec", "deploy/old", "--", "date", "+%s"}} {
		out, err := m.kubectl(ctx, "", args...)
		if err != nil {
			return err
		}
		seconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			return err
		}
		if apart := m.now().Sub(time.Unix(seconds, 0)); apart.Abs() > 10*time.Second {
			return fmt.Errorf("it is %v in the pod, and %v outside", time.Unix(seconds, 0).UTC(), m.now().UTC())
		}
	}
	return nil
}

// tokenAccepted asks the API server about the token that the pod has in its hands.
func (m *machine) tokenAccepted(ctx context.Context, client *kubernetes.Clientset) error {
	token, err := m.kubectl(ctx, "", "exec", "deploy/old", "--", "cat", tokenFile)
	if err != nil {
		return err
	}
	review, err := client.AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: strings.TrimSpace(token)}},
		metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if !review.Status.Authenticated {
		return errors.New(review.Status.Error)
	}
	return nil
}
