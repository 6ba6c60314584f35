// Package testserver owns the replacement of k8s.io/apiserver/pkg/storage/etcd3/testserver for that
// module's storage tests (see TestAPIServerStorage in the folder above): its RunEtcd gives them a
// mote store instead of an etcd. It must not import anything else of this repository but store.
package testserver
