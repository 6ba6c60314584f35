package controllers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"go.uber.org/zap"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	kubecontrollerconfig "k8s.io/kubernetes/pkg/controller/apis/config"
	nodeipamconfig "k8s.io/kubernetes/pkg/controller/nodeipam/config"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	netutils "k8s.io/utils/net"

	"github.com/mote-dev/mote/server/controllers/podcidr"
)

// podCIDRController stands in for upstream's node-ipam-controller.
type podCIDRController struct {
	*podcidr.Allocator
	context app.ControllerContext
}

var _ app.Controller = podCIDRController{}

// Name implements app.Controller: it is enabled and counted under upstream's name.
func (podCIDRController) Name() string { return names.NodeIpamController }

// Run implements app.Controller.
func (p podCIDRController) Run(ctx context.Context) {
	p.context.ControllerManagerMetrics.ControllerStarted("nodeipam")
	defer p.context.ControllerManagerMetrics.ControllerStopped("nodeipam")
	p.Allocator.Run(ctx)
}

// podCIDRs makes the controller that gives nodes their pod ranges, from the same settings as
// upstream's newNodeIpamController (v1.37.2). It returns nil if the user turned it off.
func (c Config) podCIDRs(controllerContext app.ControllerContext) (app.Controller, error) {
	settings, err := podCIDRSettings(controllerContext.ComponentConfig)
	if err != nil || settings == nil {
		return nil, err
	}
	client, err := controllerContext.NewClient("node-controller")
	if err != nil {
		return nil, fmt.Errorf("make client for %s: %w", names.NodeIpamController, err)
	}
	logger := c.Logger
	if logger == nil {
		logger = zap.NewNop()
	}
	allocator, err := podcidr.New(podcidr.Config{
		Client:       client,
		Nodes:        controllerContext.InformerFactory.Core().V1().Nodes(),
		ClusterCIDRs: settings.ClusterCIDRs,
		MaskSizes:    settings.MaskSizes,
		Reserved:     settings.Reserved,
		Logger:       logger.Named("podcidr"),
	})
	if err != nil {
		return nil, err
	}
	return podCIDRController{Allocator: allocator, context: controllerContext}, nil
}

// podCIDRSettings are the ranges that c gives to nodes; nil if it gives none.
func podCIDRSettings(c kubecontrollerconfig.KubeControllerManagerConfiguration) (*podcidr.Config, error) {
	shared, own := c.KubeCloudShared, c.NodeIPAMController
	if !shared.AllocateNodeCIDRs {
		return nil, nil
	}
	if shared.CIDRAllocatorType != string(ipam.RangeAllocatorType) {
		return nil, fmt.Errorf("kube-controller-manager-arg cidr-allocator-type=%s: mote has %s only",
			shared.CIDRAllocatorType, ipam.RangeAllocatorType)
	}
	clusterCIDRs, err := netutils.ParseCIDRs(strings.Split(shared.ClusterCIDR, ","))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's pod ranges: %w", err)
	}
	services := slices.DeleteFunc([]string{own.ServiceCIDR, own.SecondaryServiceCIDR},
		func(s string) bool { return s == "" })
	reserved, err := netutils.ParseCIDRs(services)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's service ranges: %w", err)
	}
	sizes, err := maskSizes(own, clusterCIDRs)
	if err != nil {
		return nil, err
	}
	settings := podcidr.Config{ClusterCIDRs: clusterCIDRs, MaskSizes: sizes, Reserved: reserved}
	return &settings, settings.Validate()
}

// maskSizes returns the size of a node's range in each of the cluster's. A family's size is set by
// mote already, which upstream does not accept together with the flag for both.
func maskSizes(c nodeipamconfig.NodeIPAMControllerConfiguration, clusterCIDRs []*net.IPNet) ([]int, error) {
	if c.NodeCIDRMaskSize != 0 {
		return nil, errors.New(
			"kube-controller-manager-arg node-cidr-mask-size: use node-cidr-mask-size-ipv4 or node-cidr-mask-size-ipv6")
	}
	sizes := make([]int, len(clusterCIDRs))
	for i, cidr := range clusterCIDRs {
		sizes[i] = int(c.NodeCIDRMaskSizeIPv4)
		if netutils.IsIPv6CIDR(cidr) {
			sizes[i] = int(c.NodeCIDRMaskSizeIPv6)
		}
	}
	return sizes, nil
}
