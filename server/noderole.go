package server

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/retry"
)

// controlPlaneLabel marks the nodes of servers, by upstream's name and with upstream's value.
// kubectl shows it as a role, charts select it. A kubelet may not set it for its own node.
const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

var controlPlanePatch = fmt.Appendf(nil, `{"metadata":{"labels":{%q:""}}}`, controlPlaneLabel)

// Bounds of the pauses after the label could not be set.
const firstLabelRetry, lastLabelRetry = time.Second, time.Minute

// keepRole gives the node of this server's name the label of control planes whenever it lacks it:
// when it registers, and when it registers again. Other nodes keep what they have.
func (c *control) keepRole(ctx context.Context) error {
	client, err := c.client(system)
	if err != nil {
		return fmt.Errorf("make client of node labels: %w", err)
	}
	lacks := make(chan struct{}, 1)
	look := func(obj any) {
		n, ok := obj.(*corev1.Node)
		if !ok || n.Name != c.config.NodeName {
			return
		}
		if _, has := n.Labels[controlPlaneLabel]; !has {
			select {
			case lacks <- struct{}{}:
			default:
			}
		}
	}
	nodes := c.shared.Core().V1().Nodes().Informer()
	handler, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    look,
		UpdateFunc: func(_, now any) { look(now) },
	})
	if err != nil {
		return fmt.Errorf("follow node %s: %w", c.config.NodeName, err)
	}
	defer func() { _ = nodes.RemoveEventHandler(handler) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-lacks:
		}
		if err := c.label(ctx, client); err != nil {
			return nil
		}
	}
}

// label sets the label, and tries until it is set, the node is gone, or ctx ends.
func (c *control) label(ctx context.Context, client kubernetes.Interface) error {
	backoff := retry.Backoff{First: firstLabelRetry, Last: lastLabelRetry}
	var failures retry.Failures
	for {
		_, err := client.CoreV1().Nodes().Patch(ctx, c.config.NodeName, types.MergePatchType, controlPlanePatch,
			metav1.PatchOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if ctx.Err() == nil && failures.News(err) {
			c.config.Logger.Warn("the server's node has no role yet, trying again",
				zap.String("node", c.config.NodeName), zap.Error(err))
		}
		if err := backoff.Wait(ctx); err != nil {
			return err
		}
	}
}
