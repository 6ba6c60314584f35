package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"

	"github.com/mote-dev/mote/test/bench/measure"
)

// nodesState is what the hollow nodes say of themselves, see State in test/bench/hollow.
type nodesState struct {
	Nodes      int     `json:"nodes"`
	Joined     int     `json:"joined"`
	Seconds    float64 `json:"seconds"`
	Handshake  spread  `json:"handshake"`
	Join       spread  `json:"join"`
	Missed     int64   `json:"missed"`
	Goroutines int     `json:"goroutines"`
}

type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func stateOf(ctx context.Context, socket string) (nodesState, error) {
	var s nodesState
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://nodes/", nil)
	if err != nil {
		return s, fmt.Errorf("ask nodes: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return s, fmt.Errorf("ask nodes: %w", err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("ask nodes: %w", err)
	}
	return s, nil
}

// untilJoined waits until all nodes have.
func untilJoined(ctx context.Context, c *measure.Cluster, socket string) (nodesState, error) {
	var s nodesState
	_, err := c.Until(ctx, "all nodes joined", func(ctx context.Context) error {
		var err error
		if s, err = stateOf(ctx, socket); err != nil {
			return err
		}
		if s.Joined < s.Nodes {
			return fmt.Errorf("%d of %d nodes have joined", s.Joined, s.Nodes)
		}
		return nil
	})
	return s, err
}
