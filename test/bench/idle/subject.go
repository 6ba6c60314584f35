package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/bench/measure"
)

const (
	nodeName = "idle"
	image    = "docker.io/library/busybox:1.36"
)

// subject is a cluster with how it is started and given images.
type subject struct {
	*measure.Cluster
	executables []string
	start       func(ctx context.Context) error
	// load puts an image archive into the node's store.
	load func(ctx context.Context, archive string) error
}

// measured starts a cluster, takes its figures and stops it.
func (sub subject) measured(ctx context.Context, s settings) (figures, error) {
	f := figures{name: sub.Name}
	var err error
	if f.executables, err = measure.Warm(sub.executables); err != nil {
		return f, err
	}
	defer sub.Stop()
	if err := sub.start(ctx); err != nil {
		return f, err
	}
	if f.api, err = sub.UntilAPI(ctx); err != nil {
		return f, err
	}
	if f.node, err = sub.UntilNode(ctx, nodeName); err != nil {
		return f, err
	}
	fmt.Printf("\n%s: executables %.1f MB, start to API ready %.2f s, to node Ready %.2f s\n", sub.Name, f.executables,
		f.api.Seconds(), f.node.Seconds())
	counts := []int{0}
	if s.pods > 0 {
		counts = append(counts, s.pods)
	}
	for _, pods := range counts {
		if pods > 0 {
			if f.pods, err = sub.runPods(ctx, s); err != nil {
				return f, err
			}
			fmt.Printf("\n%s: %d pods Ready %.2f s after apply\n", sub.Name, pods, f.pods.Seconds())
		}
		if err := measure.Pause(ctx, s.Settle); err != nil {
			return f, err
		}
		st, err := sub.Watch(ctx, s.Span)
		if err != nil {
			return f, err
		}
		st.Print(os.Stdout, fmt.Sprintf("%s, %d pods, left alone for %v", sub.Name, pods, s.Settle))
		f.states = append(f.states, idleState{pods, st})
	}
	return f, nil
}

// runPods applies one-container pods and waits for all of them.
func (sub subject) runPods(ctx context.Context, s settings) (time.Duration, error) {
	if err := sub.load(ctx, filepath.Join(s.images, "busybox.tar")); err != nil {
		return 0, err
	}
	// Without it pods are refused; a controller makes it a moment after the API is ready.
	if _, err := sub.Until(ctx, "default service account", func(ctx context.Context) error {
		_, err := sub.Client().CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	}); err != nil {
		return 0, err
	}
	var manifest strings.Builder
	for i := range s.pods {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: idle-%d, namespace: default}\n"+
			"spec:\n  containers:\n"+
			"  - {name: main, image: %q, imagePullPolicy: IfNotPresent, command: [sleep, \"1000000\"]}\n",
			i, image)
	}
	begin := time.Now()
	if _, err := sub.Kubectl.Run(ctx, strings.NewReader(manifest.String()), "apply", "-f", "-"); err != nil {
		return 0, err
	}
	if _, err := sub.Kubectl.Run(ctx, nil, "wait", "--for=condition=Ready", "pods", "--all",
		"--timeout=180s"); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}
