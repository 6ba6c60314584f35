// Package testserver takes the place of k8s.io/apiserver/pkg/storage/etcd3/testserver when that module's storage tests
// run (see TestAPIServerStorage in the folder above): its RunEtcd gives the tests a mote store instead of an etcd. It must not import anything of mote but the store.
package testserver
