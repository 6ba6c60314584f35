package logging

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// debugVerbosity is klog's -v in debug: what upstream recommends for a
// production cluster one looks into.
const debugVerbosity = 2

// BridgeKlog sends what Kubernetes' libraries log to log. Their info lines are
// written only in debug: at every start there are hundreds, and none says what
// mote is doing. klog keeps one state for the process, so this is called once,
// before the first part starts. The Quiet it returns has to be told how the
// process fares; in debug everything is written whatever it is told.
func BridgeKlog(log *zap.Logger, debug bool) (*Quiet, error) {
	verbosity := 0
	quiet := newQuiet(time.Now)
	if !debug {
		log = log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel), zap.WrapCore(func(c zapcore.Core) zapcore.Core { return quietCore{c, quiet} }))
	} else {
		verbosity = debugVerbosity
	}
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", strconv.Itoa(verbosity)); err != nil {
		return nil, fmt.Errorf("set verbosity of klog: %w", err)
	}
	log = log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return expectedFilter{c} }))
	// Unstructured calls would reach a logr logger without their severity, so
	// that warnings became info; as text they carry it in their first byte.
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

// writeKlogLine logs one line of klog's text format,
// "W1124 08:15:00.123456    4711 file.go:12] message".
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
