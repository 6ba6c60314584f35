// Package upstream owns the state that upstream's libraries, and Go itself, keep once for the whole
// process: feature gates and component versions, klog's and logrus' loggers, the metrics registry,
// PATH, containerd's version and folder for temporary mounts, the garbage collector's target. A
// role sets what it needs here before its first part starts. Every setter may be called again, by a
// second role or a second server in the process. Where two callers want different values the later
// one wins for both: two control planes in one process share their feature gates and their log.
//
// It must not import anything else of this repository but internal/logging and
// internal/upstreamflag.
package upstream
