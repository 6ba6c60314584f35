package controllers

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/controller-manager/pkg/clientbuilder"

	"github.com/mote-dev/mote/server/loopback"
)

// clientBuilder gives each controller a client with the rights of its service account in
// kube-system. The in-memory transport carries the identity itself, so no token is made, stored or
// renewed for it.
type clientBuilder struct {
	loopback *loopback.Server
}

var _ clientbuilder.ControllerClientBuilder = clientBuilder{}

func (b clientBuilder) Config(name string) (*rest.Config, error) {
	account := serviceaccount.UserInfo("kube-system", name, "")
	return b.loopback.Config(&user.DefaultInfo{
		Name: account.GetName(), Groups: append(account.GetGroups(), user.AllAuthenticated),
	}), nil
}

func (b clientBuilder) ConfigOrDie(name string) *rest.Config {
	config, err := b.Config(name)
	if err != nil {
		panic(err)
	}
	return config
}

func (b clientBuilder) Client(name string) (kubernetes.Interface, error) {
	config, err := b.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for %s: %w", name, err)
	}
	return client, nil
}

func (b clientBuilder) ClientOrDie(name string) kubernetes.Interface {
	client, err := b.Client(name)
	if err != nil {
		panic(err)
	}
	return client
}

func (b clientBuilder) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	config, err := b.Config(name)
	if err != nil {
		return nil, err
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make discovery client for %s: %w", name, err)
	}
	return client, nil
}

func (b clientBuilder) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	client, err := b.DiscoveryClient(name)
	if err != nil {
		panic(err)
	}
	return client
}

// manager is who the controllers are as a whole.
var manager = &user.DefaultInfo{
	Name:   "system:kube-controller-manager",
	Groups: []string{user.AllAuthenticated},
}
