package upstream

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"

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
// A klog.Fatal still ends the process, as upstream's code does not expect to go on after one; lines
// held back are written first, since one of them may be the cause.
func BridgeKlog(log *zap.Logger, debug bool) (*logging.Quiet, error) {
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
	// Unstructured calls would reach a logr logger without their severity, so that warnings became
	// info; as text they carry it in their first byte.
	klog.SetLoggerWithOptions(zapr.NewLogger(log),
		klog.ContextualLogger(true),
		klog.WriteKlogBuffer(func(line []byte) { writeKlogLine(log, line) }),
		klog.FlushLogger(func() { _ = log.Sync() }))
	klog.OsExit = func(code int) {
		quiet.Failed()
		os.Exit(code)
	}
	return quiet, nil
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
		// Fatal too: klog ends the process itself after this call.
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
