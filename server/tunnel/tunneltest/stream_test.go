package tunneltest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTunnel_KubeletAndPod_Echo(t *testing.T) {
	w := newWorld(t, setting{})
	pod := listen(t, podIP+":0", echo)
	for _, address := range []string{nodeName + ":10250", "192.0.2.10:10250", pod} {
		c := w.dial(address)
		for i := range 3 {
			want := fmt.Sprintf("%s says %d", address, i)
			if _, err := io.WriteString(c, want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	}
}

// Each half ends on its own, whoever ends first: exec's stdin, a port-forward.
func TestTunnel_HalfClose(t *testing.T) {
	t.Run("by the server", func(t *testing.T) {
		w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
			all, err := io.ReadAll(c)
			_, _ = fmt.Fprintf(c, "%d bytes, %v", len(all), err)
		}})
		c := w.dialKubelet()
		if _, err := c.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "100000 bytes, <nil>" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("by the target", func(t *testing.T) {
		heard := make(chan string, 1)
		w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "all I have")
			_ = c.CloseWrite()
			all, err := io.ReadAll(c)
			heard <- fmt.Sprintf("%s, %v", all, err)
		}})
		c := w.dialKubelet()
		if got, err := io.ReadAll(c); err != nil || string(got) != "all I have" {
			t.Fatalf("got %q, %v", got, err)
		}
		if _, err := io.WriteString(c, "and this is my answer"); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := <-heard; got != "and this is my answer, <nil>" {
			t.Errorf("target heard %q", got)
		}
	})
}

// A connection closed right after a write still delivers it, as with TCP.
func TestTunnel_Close_SendsWhatWasWritten(t *testing.T) {
	heard := make(chan int, 1)
	w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		heard <- int(n)
	}})
	for range 50 {
		c := w.dialKubelet()
		if _, err := c.Write(make([]byte, 300_000)); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if n := <-heard; n != 300_000 {
			t.Fatalf("target heard %d bytes", n)
		}
	}
}

// A target that breaks off is not taken for one that has said everything.
func TestTunnel_TargetReset_IsAnError(t *testing.T) {
	w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.WriteString(c, "half an ans")
		_ = c.SetLinger(0)
	}})
	c := w.dialKubelet()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), nodeName) {
		t.Errorf("got %q, %v, want an error that names the node", got, err)
	}
}

func TestTunnel_CloseByUser_EndsTarget(t *testing.T) {
	ended := make(chan struct{})
	w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
		defer close(ended)
		line := bytes.Repeat([]byte("a log that never ends\n"), 100)
		for {
			if _, err := c.Write(line); err != nil {
				return
			}
		}
	}})
	c := w.dialKubelet()
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the target goes on writing to nobody")
	}
}

func TestTunnel_Deadlines(t *testing.T) {
	w := newWorld(t, setting{})
	c := w.dialKubelet()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) ||
		!timeout.Timeout() {
		t.Errorf("read: %v", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("read after the deadline was moved: %v", err)
	}
}

// Streams that nobody reads hold up no others, in either direction.
func TestTunnel_ManyStreams_OnesStalled(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, setting{kubelet: func(c *net.TCPConn) {
		kind := make([]byte, 1)
		if _, err := io.ReadFull(c, kind); err != nil {
			return
		}
		switch kind[0] {
		case 'w': // writes without end
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		case 'r': // never reads
			<-release
		default:
			echo(c)
		}
	}})
	defer close(release)
	var stalled sync.WaitGroup
	defer stalled.Wait()
	for _, kind := range "wwrr" {
		c := w.dialKubelet()
		if _, err := c.Write([]byte(string(kind))); err != nil {
			t.Fatal(err)
		}
		if kind == 'r' {
			stalled.Go(func() {
				for {
					if _, err := c.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			})
		}
		defer c.Close()
	}
	const streams, size = 200, 500_000
	var all sync.WaitGroup
	for i := range streams {
		c := w.dialKubelet()
		all.Go(func() {
			seed := rand.NewChaCha8(sha256.Sum256([]byte{byte(i)}))
			data := make([]byte, size)
			_, _ = seed.Read(data)
			var sending sync.WaitGroup
			sending.Go(func() {
				_, err := c.Write(append([]byte("e"), data...))
				if err = errors.Join(err, c.CloseWrite()); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			})
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
			}
			sending.Wait()
		})
	}
	all.Wait()
}

func TestTunnel_BigTransfer_IsIntact(t *testing.T) {
	const size = 96 << 20
	w := newWorld(t, setting{})
	c := w.dialKubelet()
	sent, got := sha256.New(), sha256.New()
	var sending sync.WaitGroup
	sending.Go(func() {
		random := rand.NewChaCha8([32]byte{1})
		_, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(random, size))
		if err = errors.Join(err, c.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	n, err := io.Copy(got, c)
	sending.Wait()
	if err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes of %d, %v, or not the same", n, size, err)
	}
	t.Logf("%.0f MiB/s each way", float64(size>>20)/time.Since(start).Seconds())
}

// What a node lets no one reach, whatever the server asks for.
func TestTunnel_Refused(t *testing.T) {
	w := newWorld(t, setting{})
	listen(t, "127.77.2.5:0", echo)
	closed := listen(t, podIP+":0", echo)
	_, port, err := net.SplitHostPort(closed)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ name, cidr, target, want string }{
		{"another node's pod", "127.77.2.0/24", "127.77.2.5:80", "not in the range of its pods"},
		{"the machine itself", "127.0.0.0/24", "127.0.0.1:" + port, "not in the range of its pods"},
		{"nobody listens", podRange, "127.77.1.9:1", "connection refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			// The server is told that the range is the node's; the node knows better.
			w.nodes.add(nodeName, "192.0.2.10", row.cidr)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			c, err := w.server.DialContext(ctx, "tcp", row.target)
			if err == nil {
				_ = c.Close()
				t.Fatal("it is let through")
			}
			if !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), nodeName) ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %q, want one line with %q and the node", err, row.want)
			}
		})
	}
}

func TestTunnel_DialContextEnds_StreamGoesOn(t *testing.T) {
	w := newWorld(t, setting{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c, err := w.server.DialContext(ctx, "tcp", nodeName+":10250")
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}
