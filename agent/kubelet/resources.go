package kubelet

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// resources parses quantities such as "cpu": "100m" of the kubelet-arg called name.
func resources(name string, amounts map[string]string) (corev1.ResourceList, error) {
	list := make(corev1.ResourceList, len(amounts))
	for key, text := range amounts {
		amount, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("kubelet-arg %s: %s=%q is not a quantity: %w", name, key, text, err)
		}
		if amount.Sign() < 0 {
			return nil, fmt.Errorf("kubelet-arg %s: %s=%q is negative", name, key, text)
		}
		list[corev1.ResourceName(key)] = amount
	}
	return list, nil
}
