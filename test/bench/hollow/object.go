package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"runtime"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/component-base/version"
)

// object is what a kubelet registers: as large as that of a node with a few images.
func (n *node) object() *corev1.Node {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("3884344Ki"),
		corev1.ResourcePods:             resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("30298176Ki"), "hugepages-2Mi": resource.MustParse("0"),
	}
	id := fmt.Sprintf("%032x", n.number+1)
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.name,
			Labels: map[string]string{
				"beta.kubernetes.io/arch": runtime.GOARCH, "beta.kubernetes.io/os": "linux",
				corev1.LabelArchStable: runtime.GOARCH, corev1.LabelOSStable: "linux", corev1.LabelHostname: n.name,
			},
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
		},
		Status: corev1.NodeStatus{
			Capacity:    capacity,
			Allocatable: capacity.DeepCopy(),
			Conditions:  conditions(false, nil),
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.address().String()},
				{Type: corev1.NodeHostName, Address: n.name}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
			NodeInfo: corev1.NodeSystemInfo{
				MachineID:               id,
				SystemUUID:              id,
				BootID:                  id,
				KernelVersion:           "6.12.34",
				OSImage:                 "Debian GNU/Linux 13 (trixie)",
				ContainerRuntimeVersion: "containerd://2.4.2",
				KubeletVersion:          version.Get().GitVersion,
				OperatingSystem:         "linux",
				Architecture:            runtime.GOARCH,
			},
		},
	}
	for i := range 8 {
		name := fmt.Sprintf("registry.example.com/team/application-%d", i)
		node.Status.Images = append(node.Status.Images,
			corev1.ContainerImage{Names: []string{fmt.Sprintf("%s@sha256:%064x", name, i), name + ":1.0"},
				SizeBytes: 12345678})
	}
	return node
}

// conditions are a node's, with the times of those that have not changed.
func conditions(ready bool, before []corev1.NodeCondition) []corev1.NodeCondition {
	now := metav1.Now()
	list := []corev1.NodeCondition{
		{
			Type:    corev1.NodeMemoryPressure,
			Status:  corev1.ConditionFalse,
			Reason:  "KubeletHasSufficientMemory",
			Message: "kubelet has sufficient memory available",
		},
		{
			Type:    corev1.NodeDiskPressure,
			Status:  corev1.ConditionFalse,
			Reason:  "KubeletHasNoDiskPressure",
			Message: "kubelet has no disk pressure",
		},
		{
			Type:    corev1.NodePIDPressure,
			Status:  corev1.ConditionFalse,
			Reason:  "KubeletHasSufficientPID",
			Message: "kubelet has sufficient PID available",
		},
		{
			Type:    corev1.NodeReady,
			Status:  corev1.ConditionFalse,
			Reason:  "KubeletNotReady",
			Message: "container runtime network not ready",
		},
	}
	if ready {
		list[3] = corev1.NodeCondition{
			Type:    corev1.NodeReady,
			Status:  corev1.ConditionTrue,
			Reason:  "KubeletReady",
			Message: "kubelet is posting ready status",
		}
	}
	for i := range list {
		list[i].LastHeartbeatTime, list[i].LastTransitionTime = now, now
		for _, b := range before {
			if b.Type == list[i].Type && b.Status == list[i].Status {
				list[i].LastTransitionTime = b.LastTransitionTime
			}
		}
	}
	return list
}

// servingTimeout bounds the wait for the kubelet's serving certificate.
const servingTimeout = 2 * time.Minute

// serving gets the certificate a kubelet serves with. Nobody calls this one, so it is not kept.
func (n *node) serving(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, servingTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "system:node:" + n.name, Organization: []string{"system:nodes"}},
		DNSNames: []string{n.name}, IPAddresses: []net.IP{n.address()},
	}, key)
	if err != nil {
		return fmt.Errorf("make certificate request: %w", err)
	}
	name, uid, err := csr.RequestCertificateWithContext(ctx, client,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "",
		certificatesv1.KubeletServingSignerName, nil,
		[]certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}, key)
	if err != nil {
		return fmt.Errorf("request serving certificate: %w", err)
	}
	if _, err := csr.WaitForCertificate(ctx, client, name, uid); err != nil {
		return fmt.Errorf("wait for serving certificate %s: %w", name, err)
	}
	return nil
}
