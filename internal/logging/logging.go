package logging

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Formats of log lines.
const (
	// FormatText is a line of time, level, part, message and fields, for people.
	FormatText = "text"
	// FormatJSON is one JSON object a line, for collectors.
	FormatJSON = "json"
)

// DebugVerbosity is klog's -v in debug: what upstream recommends for looking into a production
// cluster.
const DebugVerbosity = 2

// Options say where log lines go and how much of them.
type Options struct {
	// Output receives whole lines. Required. Calls are serialised.
	Output io.Writer
	// Format is FormatText or FormatJSON. Empty means FormatText.
	Format string
	// Terminal shortens the time to the clock, colours the level, and writes fields as key=value,
	// for a person who watches. It is ignored with FormatJSON.
	Terminal bool
	// Plain leaves out colours.
	Plain bool
	// Debug writes more than info, warnings and errors.
	Debug bool
}

// New returns the process's logger.
func New(o Options) (*zap.Logger, error) {
	config := zapcore.EncoderConfig{
		TimeKey:          "time",
		LevelKey:         "level",
		NameKey:          "part",
		MessageKey:       "msg",
		StacktraceKey:    zapcore.OmitKey,
		CallerKey:        zapcore.OmitKey,
		LineEnding:       zapcore.DefaultLineEnding,
		ConsoleSeparator: " ",
		EncodeTime:       zapcore.ISO8601TimeEncoder,
		EncodeLevel:      clamp(zapcore.CapitalLevelEncoder),
		EncodeDuration:   zapcore.StringDurationEncoder,
		EncodeName:       zapcore.FullNameEncoder,
	}
	var encoder zapcore.Encoder
	switch o.Format {
	case FormatJSON:
		config.EncodeLevel = clamp(zapcore.LowercaseLevelEncoder)
		config.EncodeTime = zapcore.RFC3339NanoTimeEncoder
		encoder = zapcore.NewJSONEncoder(config)
	case FormatText, "":
		if o.Terminal {
			config.EncodeTime = func(t time.Time,
				enc zapcore.PrimitiveArrayEncoder) {
				enc.AppendString(t.Format(time.TimeOnly))
			}
			if !o.Plain {
				config.EncodeLevel = clamp(zapcore.CapitalColorLevelEncoder)
			}
		}
		encoder = zapcore.NewConsoleEncoder(config)
		if o.Terminal {
			encoder = newTerminalEncoder(encoder)
		}
	default:
		return nil, fmt.Errorf("log-format %q is unknown: use %s or %s", o.Format, FormatText, FormatJSON)
	}
	out := zapcore.Lock(zapcore.AddSync(o.Output))
	level := zapcore.InfoLevel
	if o.Debug {
		// zapr makes klog's V(n) into level -n.
		level = -DebugVerbosity
	}
	return zap.New(zapcore.NewCore(encoder, out, level), zap.ErrorOutput(out)), nil
}

// clamp gives the levels below debug, which klog's verbosity makes, debug's name.
func clamp(encode zapcore.LevelEncoder) zapcore.LevelEncoder {
	return func(l zapcore.Level, enc zapcore.PrimitiveArrayEncoder) { encode(max(l, zapcore.DebugLevel), enc) }
}
