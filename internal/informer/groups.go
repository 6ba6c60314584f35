package informer

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apiserverinternal"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/events"
	"k8s.io/client-go/informers/extensions"
	"k8s.io/client-go/informers/flowcontrol"
	"k8s.io/client-go/informers/lifecycle"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/node"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/informers/storagemigration"
)

// The accessors of the embedded factory would lead to its own InformerFor, past the gate; these
// lead to the gate's.

// Admissionregistration implements informers.SharedInformerFactory.
func (g *Gate) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(g, metav1.NamespaceAll, nil)
}

// Internal implements informers.SharedInformerFactory.
func (g *Gate) Internal() apiserverinternal.Interface {
	return apiserverinternal.New(g, metav1.NamespaceAll, nil)
}

// Apps implements informers.SharedInformerFactory.
func (g *Gate) Apps() apps.Interface { return apps.New(g, metav1.NamespaceAll, nil) }

// Autoscaling implements informers.SharedInformerFactory.
func (g *Gate) Autoscaling() autoscaling.Interface {
	return autoscaling.New(g, metav1.NamespaceAll, nil)
}

// Batch implements informers.SharedInformerFactory.
func (g *Gate) Batch() batch.Interface { return batch.New(g, metav1.NamespaceAll, nil) }

// Certificates implements informers.SharedInformerFactory.
func (g *Gate) Certificates() certificates.Interface {
	return certificates.New(g, metav1.NamespaceAll, nil)
}

// Coordination implements informers.SharedInformerFactory.
func (g *Gate) Coordination() coordination.Interface {
	return coordination.New(g, metav1.NamespaceAll, nil)
}

// Core implements informers.SharedInformerFactory.
func (g *Gate) Core() core.Interface { return core.New(g, metav1.NamespaceAll, nil) }

// Discovery implements informers.SharedInformerFactory.
func (g *Gate) Discovery() discovery.Interface { return discovery.New(g, metav1.NamespaceAll, nil) }

// Events implements informers.SharedInformerFactory.
func (g *Gate) Events() events.Interface { return events.New(g, metav1.NamespaceAll, nil) }

// Extensions implements informers.SharedInformerFactory.
func (g *Gate) Extensions() extensions.Interface { return extensions.New(g, metav1.NamespaceAll, nil) }

// Flowcontrol implements informers.SharedInformerFactory.
func (g *Gate) Flowcontrol() flowcontrol.Interface {
	return flowcontrol.New(g, metav1.NamespaceAll, nil)
}

// Lifecycle implements informers.SharedInformerFactory.
func (g *Gate) Lifecycle() lifecycle.Interface { return lifecycle.New(g, metav1.NamespaceAll, nil) }

// Networking implements informers.SharedInformerFactory.
func (g *Gate) Networking() networking.Interface { return networking.New(g, metav1.NamespaceAll, nil) }

// Node implements informers.SharedInformerFactory.
func (g *Gate) Node() node.Interface { return node.New(g, metav1.NamespaceAll, nil) }

// Policy implements informers.SharedInformerFactory.
func (g *Gate) Policy() policy.Interface { return policy.New(g, metav1.NamespaceAll, nil) }

// Rbac implements informers.SharedInformerFactory.
func (g *Gate) Rbac() rbac.Interface { return rbac.New(g, metav1.NamespaceAll, nil) }

// Resource implements informers.SharedInformerFactory.
func (g *Gate) Resource() resource.Interface { return resource.New(g, metav1.NamespaceAll, nil) }

// Scheduling implements informers.SharedInformerFactory.
func (g *Gate) Scheduling() scheduling.Interface { return scheduling.New(g, metav1.NamespaceAll, nil) }

// Storage implements informers.SharedInformerFactory.
func (g *Gate) Storage() storage.Interface { return storage.New(g, metav1.NamespaceAll, nil) }

// Storagemigration implements informers.SharedInformerFactory.
func (g *Gate) Storagemigration() storagemigration.Interface {
	return storagemigration.New(g, metav1.NamespaceAll, nil)
}
