package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// pair is a key of a configuration file with its value as written. Decoding it first would lose the
// text: YAML takes 007, on, 0x1f, 1.10 and 2024-05-01 for numbers, booleans and dates, and they may
// be a token or a name.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// parse reads one YAML or JSON document, which holds a mapping or nothing.
func parse(data []byte) ([]pair, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var more yaml.Node
	switch err := decoder.Decode(&more); {
	case err == nil && !isNull(content(&more)):
		return nil, fmt.Errorf("line %d begins a second document: a file holds one", more.Line)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	}
	root := content(&document)
	switch {
	case isNull(root):
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, errors.New("it holds no keys: write it as `key: value`, a line each")
	}
	pairs := make([]pair, 0, len(root.Content)/2)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := content(root.Content[i])
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key must be a word", key.Line)
		}
		pairs = append(pairs, pair{key.Value, key.Line, root.Content[i+1]})
	}
	return pairs, nil
}

// content resolves what stands for something else: a document, and an alias.
func content(n *yaml.Node) *yaml.Node {
	switch {
	case n.Kind == yaml.DocumentNode && len(n.Content) == 1:
		return content(n.Content[0])
	case n.Kind == yaml.AliasNode:
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

var (
	errForm  = errors.New("must be a value or a list of values")
	errLines = errors.New("has several lines: write a list with one item a line")
)

// items returns the texts of a value or a list of values, and nil for no value.
func (p pair) items() ([]string, error) {
	n := content(p.value)
	switch {
	case isNull(n):
		return nil, nil
	case n.Kind == yaml.ScalarNode:
		one, err := text(n)
		return []string{one}, err
	case n.Kind != yaml.SequenceNode:
		return nil, errForm
	}
	items := make([]string, 0, len(n.Content))
	for _, item := range n.Content {
		item = content(item)
		if item.Kind == yaml.MappingNode && len(item.Content) == 2 && item.Content[1].Kind == yaml.ScalarNode {
			// The easiest mistake with flag=value.
			return nil, fmt.Errorf("%w: write the item as \"%s=%s\"", errForm, item.Content[0].Value,
				item.Content[1].Value)
		}
		if item.Kind != yaml.ScalarNode || isNull(item) {
			return nil, errForm
		}
		one, err := text(item)
		if err != nil {
			return nil, err
		}
		items = append(items, one)
	}
	return items, nil
}

// text is a scalar as it was written.
func text(n *yaml.Node) (string, error) {
	if n.Style&yaml.TaggedStyle != 0 {
		switch n.ShortTag() {
		case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!":
		default:
			return "", fmt.Errorf("has the tag %s: write the value without it", n.Tag)
		}
	}
	value := n.Value
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		// A block ends with a line break that nobody means.
		value = strings.TrimRight(value, "\n")
	}
	if strings.ContainsAny(value, "\r\n") {
		return "", errLines
	}
	return value, nil
}
