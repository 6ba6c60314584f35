package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	corev1informers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// activePods shows the scheduler the shared informers with finished pods left
// out of its events. Upstream's scheduler has a pod informer of its own with a
// field selector for that (scheduler.NewInformerFactory) and counts on it: a
// finished pod it hears of would keep its node's resources taken.
type activePods struct {
	informers.SharedInformerFactory
}

func (f activePods) Core() core.Interface { return activeCore{f.SharedInformerFactory.Core()} }

type activeCore struct{ core.Interface }

func (c activeCore) V1() corev1informers.Interface { return activeCoreV1{c.Interface.V1()} }

type activeCoreV1 struct{ corev1informers.Interface }

func (v activeCoreV1) Pods() corev1informers.TypedPodInformer {
	return activePodInformer{v.Interface.Pods()}
}

type activePodInformer struct {
	corev1informers.TypedPodInformer
}

func (p activePodInformer) Informer() cache.SharedIndexInformer {
	return activePodIndexInformer{p.TypedPodInformer.Informer()}
}

// TypedInformer is not used by this version's scheduler (eventhandlers.go and
// all its plugins take Informer). Answering with unfiltered events would go
// unnoticed, so it refuses.
func (p activePodInformer) TypedInformer() corev1informers.PodIndexInformer {
	panic("scheduler asked for a typed pod informer, which is not filtered")
}

type activePodIndexInformer struct{ cache.SharedIndexInformer }

// AddEventHandler implements cache.SharedInformer. A pod that finishes reaches
// the handler as deleted.
func (i activePodIndexInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(cache.FilteringResourceEventHandler{FilterFunc: active, Handler: h})
}

func active(obj any) bool {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	return ok && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}
