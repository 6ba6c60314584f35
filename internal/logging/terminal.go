package logging

import (
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// terminalEncoder writes fields behind the message as key=value. zap's console encoder writes them
// as JSON, which a person has to take apart, and which fills a line of a terminal twice as fast.
type terminalEncoder struct {
	// MapObjectEncoder holds the fields of the logger itself.
	*zapcore.MapObjectEncoder
	line zapcore.Encoder
}

func newTerminalEncoder(line zapcore.Encoder) terminalEncoder {
	return terminalEncoder{zapcore.NewMapObjectEncoder(), line}
}

// Clone implements zapcore.Encoder.
func (e terminalEncoder) Clone() zapcore.Encoder {
	clone := newTerminalEncoder(e.line)
	for key, value := range e.Fields {
		clone.Fields[key] = value
	}
	return clone
}

// EncodeEntry implements zapcore.Encoder.
func (e terminalEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	all := zapcore.NewMapObjectEncoder()
	for key, value := range e.Fields {
		all.Fields[key] = value
	}
	for _, f := range fields {
		f.AddTo(all)
	}
	words := make([]string, 0, len(all.Fields))
	for key, value := range all.Fields {
		text := fmt.Sprint(value)
		if text == "" || strings.ContainsAny(text, " \"=\n\t") {
			text = fmt.Sprintf("%q", text)
		}
		words = append(words, key+"="+text)
	}
	slices.Sort(words)
	if len(words) > 0 {
		entry.Message += " " + strings.Join(words, " ")
	}
	return e.line.EncodeEntry(entry, nil)
}
