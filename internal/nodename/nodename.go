package nodename

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// longest is how long a name may be. The API takes 253 characters, but the kubelet also writes the
// name into the label kubernetes.io/hostname, whose value ends there, and a node whose label is
// refused never registers. The subject of the node's certificate is bounded as well.
const longest = validation.LabelValueMaxLength

// Validate refuses what cannot be a node's name, and proposes one that can.
func Validate(name string) error {
	var why string
	switch {
	case len(name) > longest:
		why = fmt.Sprintf("is %d characters long, dots included", len(name))
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		why = "is no DNS name"
	default:
		return nil
	}
	example := ""
	if p := propose(name); p != "" {
		example = ", such as " + p
	}
	return fmt.Errorf("node-name %q %s: choose one with --node-name, of at most %d lower case letters, digits, '-' "+
		"and '.'%s", name, why, longest, example)
}

// OfHost is the name of the node on a host. What DNS does not distinguish is mapped: capitals, and
// the dot at the end of a full name. Everything else is left to Validate, which refuses what two
// hosts could share after a change.
func OfHost(host string) string {
	return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(host), "."))
}

// propose returns a valid name that is close to name; "" if there is none.
func propose(name string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r == '_', r == ' ':
			return '-'
		}
		return -1
	}, strings.ToLower(name))
	var labels []string
	for label := range strings.SplitSeq(clean, ".") {
		if label = strings.Trim(label, "-"); label != "" {
			labels = append(labels, label)
		}
	}
	clean = strings.Join(labels, ".")
	if len(clean) > longest && len(labels) > 0 {
		// A full name's first label is what people call the machine.
		clean = labels[0]
	}
	if len(clean) > longest {
		clean = strings.TrimRight(clean[:longest], "-.")
	}
	if len(validation.IsDNS1123Subdomain(clean)) > 0 {
		return ""
	}
	return clean
}
