package logging

import (
	"strings"

	"go.uber.org/zap/zapcore"
)

// expected are the beginnings of messages that Kubernetes' libraries log as warnings or errors
// although they belong to every good start here: API versions that exist without resources, a
// kubelet that starts a moment before its node is registered, things a container or small board
// does not permit. They are written in debug only; anything not listed is.
var expected = []string{
	"Skipping API ",
	"The manifest file is empty, ignoring.",
	"Unable to register mirror pod because node is not registered yet",
	"Error getting the current node from lister",
	"Failed to set rlimit on max file handles",
	"Failed to ensure process in container with oom score",
	"Image garbage collection failed once. Stats initialization may not have completed yet",
	"eviction manager: failed to check if we have separate container filesystem. Ignoring.",
	"Eviction manager: failed to get summary stats",
	"Failed to read data from checkpoint",
	"Skipping pod synchronization",
	"Flexvolume plugin directory at ",
	"Failed to ensure lease exists, will retry",
	"Failed to get node when trying to set owner ref to the node lease",
	"Unable to delete lease",
	// Both wait for an object that the same start makes, and are tried again.
	"Error while syncing ConfigMap",
	"Failed to initialize CSINode",
	// A watch whose asker went away while it was filled.
	"failed to sync with latest state: context canceled",
	// A handler ended after its client had gone away, as a kubelet's do that stops.
	"Post-timeout activity",
	// An answer was cut off because its client had gone away, or had been waiting for a minute and
	// was told so. apiserver_request_aborts_total counts both.
	"Timeout or abort while handling",
}

// expectedCause is a message that is expected only with an error that contains a text, as upstream
// formats the error and drops its type. Where upstream formats the error into the message, the text
// is looked for there.
type expectedCause struct{ start, cause string }

var expectedCauses = []expectedCause{
	// A controller wrote to an object that somebody else had changed since it was read. Each of
	// them reads the object and tries again, which is how optimistic concurrency works; they report
	// it in as many words as there are controllers.
	{"", optimisticLockError},
	// The first status after the registration is based on the kubelet's own informer, which has not
	// received the new node yet. Upstream reads the node from the API server then. Only the
	// informer's lister calls the resource "node"; the API server says "nodes".
	{"Error updating node status, will retry", `: node "`},
	// Mirror pods of static pods are created as soon as the informer has the node.
	{"No need to create a mirror pod, since failed to get node info from the cluster", `node "`},
	// The kubelet reads the limits in a pod's status from the pod's cgroup, which goes away as the
	// pod ends, on cgroup v1 one controller after another. The status of an ended pod has no limits
	// to report.
	{"failed to read memory cgroup", "no such file or directory"},
	// A controller waits for its cache to have what it wrote itself before it looks at the object
	// again, and is queued again until then. Upstream reports that wait as it does an error:
	// HandleError's message is the first one's.
	{"Unhandled Error", "is not as new as written version"},
	{"Error syncing StatefulSet, requeuing", "is not as new as written version"},
	// A container ended, and containerd forgot it, while the kubelet or cAdvisor looked at it. Both
	// see the end by themselves a moment later. Only containerd's own answers begin like these: an
	// image that does not exist reads otherwise.
	{"", "code = NotFound desc = container "},
	{"", "code = NotFound desc = task "},
	{"", "code = NotFound desc = an error occurred when try to find container "},
	{"", "code = NotFound desc = an error occurred when try to find sandbox "},
	{"Failed to process watch event", "no such file or directory"},
	// The user's container ends again and again, or its image is not there yet. The pod's status
	// and events report it; the kubelet repeats it for as long as it waits.
	{"Error syncing pod, skipping", "with CrashLoopBackOff"},
	{"Error syncing pod, skipping", "with ImagePullBackOff"},
}

// optimisticLockError is the end of the API server's refusal to update an object that was changed
// since the client read it (registry.OptimisticLockErrorMsg, which an agent should not import).
const optimisticLockError = "the object has been modified; " +
	"please apply your changes to the latest version and try again"

// expectedFilter drops the expected messages unless debug lines are wanted.
type expectedFilter struct{ zapcore.Core }

// With implements zapcore.Core.
func (f expectedFilter) With(fields []zapcore.Field) zapcore.Core {
	return expectedFilter{f.Core.With(fields)}
}

// Check implements zapcore.Core.
func (f expectedFilter) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if f.Enabled(e.Level) {
		return c.AddCore(e, f)
	}
	return c
}

// Write implements zapcore.Core. The text is known only here: klog's unstructured lines are put
// into the entry after it was checked.
func (f expectedFilter) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if !f.Enabled(zapcore.DebugLevel) {
		for _, start := range expected {
			if strings.HasPrefix(e.Message, start) {
				return nil
			}
		}
		for _, x := range expectedCauses {
			if strings.HasPrefix(e.Message, x.start) &&
				(strings.Contains(errorOf(fields), x.cause) || strings.Contains(e.Message, x.cause)) {
				return nil
			}
		}
	}
	return f.Core.Write(e, fields)
}

// errorOf returns the text of the error among the fields of a line, or "".
func errorOf(fields []zapcore.Field) string {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return err.Error()
		}
	}
	return ""
}
