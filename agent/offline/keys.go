package offline

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// kind is how the cache treats a request.
type kind int

const (
	// other requests are only forwarded.
	other kind = iota
	// list, watch and get read cached resources.
	list
	watch
	get
	// token requests a service account's token.
	token
)

// lists are the resources whose lists are cached, by API group. CSINodes are left out: once a
// kubelet has read its own, it must change it within minutes or it exits the process.
var lists = map[string][]string{
	"": {"pods", "nodes", "services", "namespaces", "configmaps", "secrets", "persistentvolumes",
		"persistentvolumeclaims"},
	"discovery.k8s.io":  {"endpointslices"},
	"networking.k8s.io": {"networkpolicies", "servicecidrs"},
	"node.k8s.io":       {"runtimeclasses"},
	"storage.k8s.io":    {"csidrivers"},
}

// singles are the core resources whose objects kubelets read one by one to run a pod. Nodes and
// pods are left out, as kubelets read them in order to change them.
var singles = []string{"configmaps", "secrets", "persistentvolumes", "persistentvolumeclaims"}

// How long unused responses are cached.
const (
	idleLife  = time.Hour
	tokenLife = 26 * time.Hour
)

// pace is how fast changes of a list reach the disk.
type pace struct {
	// added and modified are how long to wait for further changes: after an object was added or
	// deleted, and after one was modified.
	added, modified time.Duration
	// every is the time between two reads of the list while changes do not stop. A burst of reads
	// may be faster, so that occasional changes need not wait.
	every time.Duration
	burst int
}

// The node and the objects of its pods must be on disk before a pod can have started: a kubelet
// that restarts without a server stops containers that are not of its pods, and reads its pods only
// once it knows its own Node. Changes of the whole cluster may never stop, and flash storage wears
// out.
var (
	ownPace = pace{
		added:    0,
		modified: time.Second,
		every:    time.Second,
		burst:    4,
	}
	allPace = pace{
		added:    time.Second,
		modified: time.Second,
		every:    30 * time.Second,
		burst:    4,
	}
)

// classify returns the kind of a request, and the key of its response: the same for a list and its
// watch.
func classify(r *http.Request) (k kind, key string, p pace, err error) {
	resource, name, rest := parse(r.URL.Path)
	switch {
	case r.Method == http.MethodPost && resource == "serviceaccounts" && rest == "token":
		body, err := readBody(r)
		if err != nil {
			return other, "", pace{}, err
		}
		sum := sha256.Sum256(body)
		return token, r.URL.Path + "#" + hex.EncodeToString(sum[:]), pace{}, nil
	case r.Method != http.MethodGet || resource == "" || rest != "":
		return other, "", pace{}, nil
	case name != "":
		if slices.Contains(singles, resource) {
			return get, r.URL.Path, pace{}, nil
		}
		return other, "", pace{}, nil
	}
	q := r.URL.Query()
	selection := url.Values{}
	for _, s := range []string{"fieldSelector", "labelSelector"} {
		if q.Has(s) {
			selection.Set(s, q.Get(s))
		}
	}
	key, p = r.URL.Path+"?"+selection.Encode(), allPace
	fields := q.Get("fieldSelector")
	if slices.Contains(singles, resource) || strings.Contains(fields, "spec.nodeName=") ||
		strings.Contains(fields, "metadata.name=") {
		p = ownPace
	}
	if isTrue(q.Get("watch")) {
		return watch, key, p, nil
	}
	return list, key, p, nil
}

func isTrue(text string) bool { return text == "true" || text == "1" }

// parse splits the path of a cached resource; resource is empty for others.
func parse(path string) (resource, name, rest string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := ""
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		group, parts = parts[1], parts[3:]
	default:
		return "", "", ""
	}
	if len(parts) >= 3 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	if !slices.Contains(lists[group], parts[0]) && (group != "" || parts[0] != "serviceaccounts") {
		return "", "", ""
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return parts[0], name, strings.Join(parts[min(2, len(parts)):], "/")
}

// life returns how long an unused response is cached.
func life(key string) time.Duration {
	if strings.Contains(key, "#") {
		return tokenLife
	}
	return idleLife
}

// readBody reads a request's body and puts it back.
func readBody(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	data, err := io.ReadAll(r.Body)
	if closeErr := r.Body.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	return data, nil
}
