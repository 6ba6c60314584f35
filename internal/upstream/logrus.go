package upstream

import (
	"fmt"
	"io"
	goruntime "runtime"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// BridgeContainerd sends what containerd logs, which goes to logrus' one standard logger, to log.
// Containerd's info is our debug: it reports every call. Its fatal errors, which would end the
// process, are sent to fatal, and only the goroutine that met one ends. A second containerd in the
// process takes the logger over from the first.
func BridgeContainerd(log *zap.Logger, debug bool, fatal chan<- error) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetFormatter(discardFormatter{})
	std.SetLevel(logrus.WarnLevel)
	if debug {
		std.SetLevel(logrus.InfoLevel)
	}
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(&zapHook{log: log, fatal: fatal})
	std.ExitFunc = func(int) { goruntime.Goexit() }
}

// expectedWarnings are logged at each start of a healthy node.
var expectedWarnings = []string{
	"failed check for fsverity support",
	// Credentials are given that way; it is the only one that keeps them in memory.
	"`configs` is deprecated, please use `config_path` instead",
	// The pod network writes its configuration when the node has its addresses.
	"failed to load cni during init, please check CRI plugin status before setting up network for pods",
}

type discardFormatter struct{}

func (discardFormatter) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

type zapHook struct {
	log   *zap.Logger
	fatal chan<- error
}

func (*zapHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h *zapHook) Fire(e *logrus.Entry) error {
	if e.Level == logrus.FatalLevel {
		select {
		case h.fatal <- fmt.Errorf("run containerd: %s: %v", e.Message, e.Data[logrus.ErrorKey]):
		default: // the first one is already on its way
		}
	}
	level := zapLevel(e.Level)
	if level == zapcore.WarnLevel && slices.Contains(expectedWarnings, e.Message) {
		level = zapcore.DebugLevel
	}
	ce := h.log.Check(level, e.Message)
	if ce == nil {
		return nil
	}
	ce.Time = e.Time
	if ce.Time.IsZero() {
		ce.Time = time.Now()
	}
	fields := make([]zap.Field, 0, len(e.Data))
	for k, v := range e.Data {
		fields = append(fields, zap.Any(k, v))
	}
	ce.Write(fields...)
	return nil
}

// zapLevel maps containerd's levels to ours, one quieter below error.
func zapLevel(l logrus.Level) zapcore.Level {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		return zapcore.ErrorLevel
	case logrus.WarnLevel:
		return zapcore.WarnLevel
	default:
		return zapcore.DebugLevel
	}
}
