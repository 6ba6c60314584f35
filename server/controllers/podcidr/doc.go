// Package podcidr owns the pod ranges of nodes: it cuts the cluster's ranges into one of each
// family per node and writes them to spec.podCIDRs. It replaces upstream's range allocator, which
// decides from an informer's cache alone and so gives a node that has just got its ranges further
// ones.
//
// It must not import anything else of this repository but internal/retry.
package podcidr
