package upstream

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	goruntime "runtime"
	"strconv"
	"sync"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"

	"github.com/mote-dev/mote/internal/logging"
)

// BridgeKlog sends what Kubernetes' libraries log to log, through the filters of
// [logging.ForKubernetes]. The caller reports to the Quiet it returns whether the start succeeded.
// klog is not to be switched while something logs, so call this before the first part starts.
//
// A klog.Fatal, or another end of the process that upstream's code asks klog for, ends only the
// goroutine that asked. fatal hears the reason first, and has to end the role: upstream's code does
// not expect to go on, and another part may have failed before and be the cause.
func BridgeKlog(log *zap.Logger, debug bool, fatal func(error)) (*logging.Quiet, error) {
	verbosity := 0
	if debug {
		verbosity = logging.DebugVerbosity
	}
	log, quiet := logging.ForKubernetes(log, debug)
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", strconv.Itoa(verbosity)); err != nil {
		return nil, fmt.Errorf("set verbosity of klog: %w", err)
	}
	var last lastFault
	log = log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return faultCore{c, &last} }))
	// Unstructured calls would reach a logr logger without their severity, so that warnings became
	// info; as text they carry it in their first byte.
	klog.SetLoggerWithOptions(zapr.NewLogger(log),
		klog.ContextualLogger(true),
		klog.WriteKlogBuffer(func(line []byte) { writeKlogLine(log, line) }),
		klog.FlushLogger(func() { _ = log.Sync() }))
	klog.OsExit = func(int) {
		fatal(fmt.Errorf("kubernetes: %s", last.text()))
		goruntime.Goexit()
	}
	return quiet, nil
}

// lastFault is the last error that upstream's code logged: what it ends the process for.
type lastFault struct {
	mu      sync.Mutex // guards message
	message string
}

func (f *lastFault) set(message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.message = message
}

func (f *lastFault) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(f.message, "a part ended the process without a reason")
}

// faultCore remembers errors on their way to the log.
type faultCore struct {
	zapcore.Core
	last *lastFault
}

// With implements zapcore.Core.
func (c faultCore) With(fields []zapcore.Field) zapcore.Core {
	return faultCore{c.Core.With(fields), c.last}
}

// Check implements zapcore.Core.
func (c faultCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c faultCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if e.Level >= zapcore.ErrorLevel {
		message := e.Message
		for _, f := range fields {
			if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
				message += ": " + err.Error()
			}
		}
		c.last.set(message)
	}
	return c.Core.Write(e, fields)
}

// writeKlogLine logs one line of klog's text format, "W1124 08:15:00.123456 4711 file.go:12]
// message".
func writeKlogLine(log *zap.Logger, line []byte) {
	if len(line) == 0 {
		return
	}
	level := zapcore.InfoLevel
	switch line[0] {
	case 'W':
		level = zapcore.WarnLevel
	case 'E', 'F':
		// Fatal too: klog asks for the end of the process after this call.
		level = zapcore.ErrorLevel
	}
	entry := log.Check(level, "")
	if entry == nil {
		return
	}
	header, message, found := bytes.Cut(line, []byte("] "))
	if !found {
		header, message = nil, line
	}
	entry.Message = string(bytes.TrimRight(message, "\n"))
	if i := bytes.LastIndexByte(header, ' '); i >= 0 {
		// A copy: klog uses the buffer again.
		entry.Write(zap.String("at", string(header[i+1:])))
		return
	}
	entry.Write()
}
