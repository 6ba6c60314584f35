package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// kibibyte is what each object holds.
var kibibyte = map[string]string{"data": strings.Repeat("0123456789abcdef", 64)}

// work lets clients create, read, update, list and delete ConfigMaps for a while, each as fast as
// it gets its answers, and returns how many requests were answered. All they made is gone after.
func work(ctx context.Context, kubeconfig string, clients int, span time.Duration) (int64, error) {
	end := time.Now().Add(span)
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i := range clients {
		g.Go(func() error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return fmt.Errorf("read kubeconfig: %w", err)
			}
			config.QPS = -1
			// A connection a client: client-go shares transports of equal configurations otherwise.
			config.Dial = (&net.Dialer{}).DialContext
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("make client: %w", err)
			}
			for n := 0; time.Now().Before(end); n++ {
				if err := round(ctx, client, fmt.Sprintf("load-%d-%d", i, n), &done); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return done.Load(), err
}

// round is the life of one object.
func round(ctx context.Context, client kubernetes.Interface, name string, done *atomic.Int64) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	object, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: kibibyte},
		metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	done.Add(1)
	for range 2 {
		if object, err = maps.Get(ctx, name, metav1.GetOptions{}); err != nil {
			return fmt.Errorf("get: %w", err)
		}
		done.Add(1)
	}
	object.Labels = map[string]string{"updated": "yes"}
	if _, err := maps.Update(ctx, object, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	done.Add(1)
	if _, err := maps.List(ctx, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	done.Add(1)
	if err := maps.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	done.Add(1)
	return nil
}
