package offline

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

// digest identifies the part of an object or a list that is worth a write.
type digest = [sha256.Size]byte

// ofNodes reports whether a key is that of a list of nodes. Only nodes change without anything to
// store: each sends a heartbeat every few minutes, and in a large cluster one always just has. So
// their lists are compared without heartbeats.
func ofNodes(key string) bool {
	path, _, _ := strings.Cut(key, "?")
	return path == "/api/v1/nodes"
}

// digestNode ignores heartbeats, and the images on the node, which no other machine needs.
func digestNode(n *corev1.Node) (digest, error) {
	n = n.DeepCopy()
	n.ResourceVersion, n.ManagedFields, n.Status.Images = "", nil, nil
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	data, err := n.Marshal()
	if err != nil {
		return digest{}, fmt.Errorf("encode node %s: %w", n.Name, err)
	}
	return sha256.Sum256(data), nil
}

// digestNodes returns the digest of a list of nodes, and of each node by name.
func digestNodes(body []byte) (digest, map[string]digest, error) {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return digest{}, nil, fmt.Errorf("decode list of nodes: %w", err)
	}
	list, ok := obj.(*corev1.NodeList)
	if !ok {
		return digest{}, nil, fmt.Errorf("decode list of nodes: it is a %T", obj)
	}
	each, names := make(map[string]digest, len(list.Items)), make([]string, 0, len(list.Items))
	for i := range list.Items {
		name := list.Items[i].Name
		if each[name], err = digestNode(&list.Items[i]); err != nil {
			return digest{}, nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	whole := sha256.New()
	for _, name := range names {
		sum := each[name]
		fmt.Fprintf(whole, "%s %x\n", name, sum)
	}
	return digest(whole.Sum(nil)), each, nil
}

// nodeOf decodes the node of a watch event, and whether it was deleted.
func nodeOf(event []byte, binary bool) (n *corev1.Node, gone bool, err error) {
	var e metav1.WatchEvent
	if binary {
		err = e.Unmarshal(event)
	} else {
		err = json.Unmarshal(event, &e)
	}
	if err != nil {
		return nil, false, fmt.Errorf("decode event: %w", err)
	}
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(e.Object.Raw, nil, nil)
	if err != nil {
		return nil, false, fmt.Errorf("decode node: %w", err)
	}
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil, false, fmt.Errorf("decode node: it is a %T", obj)
	}
	return n, e.Type == "DELETED", nil
}

// nodeChanged records the event of a node, and reports whether it changed anything worth a write.
func (c *Cache) nodeChanged(key string, event []byte, binary bool) bool {
	n, gone, err := nodeOf(event, binary)
	if err != nil {
		return true
	}
	sum, err := digestNode(n)
	if err != nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entry(key)
	was, known := e.nodes[n.Name]
	if gone {
		delete(e.nodes, n.Name)
		return true
	}
	if known && was == sum {
		return false
	}
	if e.nodes == nil {
		e.nodes = map[string]digest{}
	}
	e.nodes[n.Name] = sum
	return true
}
