package harness

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ReadyCondition is what a node says of its being ready.
func ReadyCondition(node *corev1.Node) (corev1.NodeCondition, error) {
	i := slices.IndexFunc(node.Status.Conditions,
		func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		return corev1.NodeCondition{}, fmt.Errorf("node %s has no ready condition yet", node.Name)
	}
	return node.Status.Conditions[i], nil
}

// NodeReady is an error that says why a node is not Ready, if it is not.
func NodeReady(node *corev1.Node) error {
	c, err := ReadyCondition(node)
	if err == nil && c.Status != corev1.ConditionTrue {
		err = fmt.Errorf("node %s is not ready: %s: %s", node.Name, c.Reason, c.Message)
	}
	return err
}

// PodReady is an error that says what a pod's containers do, if it is not Ready.
func PodReady(pod *corev1.Pod) error {
	if slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}) {
		return nil
	}
	return fmt.Errorf("pod %s is %s: %s", pod.Name, pod.Status.Phase, ContainerStates(pod))
}

// ContainerStates tells in a line what the containers of a pod do.
func ContainerStates(pod *corev1.Pod) string {
	var states []string
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			switch {
			case c.State.Waiting != nil:
				states = append(states, c.Name+" waits: "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
			case c.State.Terminated != nil:
				states = append(states,
					fmt.Sprintf("%s ended: %s %d", c.Name, c.State.Terminated.Reason, c.State.Terminated.ExitCode))
			case c.State.Running != nil:
				states = append(states, fmt.Sprintf("%s runs, ready %v", c.Name, c.Ready))
			}
		}
	}
	return strings.Join(states, "; ")
}
