package joinapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The agent asks for PathTunnel with an Upgrade to TunnelProtocol. Once the server has switched,
// the roles turn round: the agent serves HTTP/2 on the connection, and the server asks it to
// CONNECT to targets. What the server sends in such a stream is the raw bytes; what the agent sends
// are frames, see WriteFrames: HTTP/2 itself gives whoever answers no way to end its half of a
// stream and go on reading.
const (
	// HeaderTunnelServer is in the answer to PathTunnel: what the server's process calls itself.
	// The same server may be known by several addresses.
	HeaderTunnelServer = "Mote-Server"
	// HeaderTunnelHave is in the request: the processes the agent has tunnels to, with commas. One
	// of them answers 409 and keeps the tunnel it has.
	HeaderTunnelHave = "Mote-Have"
	// TunnelKubelet is the target that stands for the node's kubelet, wherever it listens. All
	// other targets are IP:PORT.
	TunnelKubelet = "kubelet"
	// TunnelStreams is how many streams one tunnel carries at a time.
	TunnelStreams = 1000
	// TunnelStreamWindow is how many bytes a stream may be ahead of its reader.
	TunnelStreamWindow = 256 << 10
	// TunnelWindow is TunnelStreamWindow for all streams of a tunnel together: so much that streams
	// which nobody reads hold no others up.
	TunnelWindow = TunnelStreams * TunnelStreamWindow
)

const (
	frameHeader = 2
	// maxFrame makes a frame with its header fill an HTTP/2 frame.
	maxFrame = 16<<10 - frameHeader
)

// WriteFrames copies src to w in frames, each a length in two bytes, big endian, and so many bytes
// of data, and ends with the length 0 when src ends. flush is called after each frame. Without that
// last frame a stream was cut off.
func WriteFrames(w io.Writer, flush func() error, src io.Reader) error {
	buf := make([]byte, frameHeader+maxFrame)
	for {
		n, readErr := src.Read(buf[frameHeader:])
		if n == 0 && readErr == nil {
			continue
		}
		if n > 0 {
			binary.BigEndian.PutUint16(buf, uint16(n)) //nolint:gosec // n is at most maxFrame.
			if err := writeFrame(w, flush, buf[:frameHeader+n]); err != nil {
				return err
			}
		}
		if errors.Is(readErr, io.EOF) {
			return writeFrame(w, flush, []byte{0, 0})
		}
		if readErr != nil {
			return fmt.Errorf("read from target: %w", readErr)
		}
	}
}

func writeFrame(w io.Writer, flush func() error, frame []byte) error {
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write to tunnel: %w", err)
	}
	if err := flush(); err != nil {
		return fmt.Errorf("write to tunnel: %w", err)
	}
	return nil
}

// ReadFrames copies what WriteFrames wrote from r to dst. It returns nil after the last frame, and
// io.ErrUnexpectedEOF if r ends before that.
func ReadFrames(dst io.Writer, r io.Reader) error {
	buf := make([]byte, maxFrame)
	for {
		if _, err := io.ReadFull(r, buf[:frameHeader]); err != nil {
			return cutOff(err)
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n == 0 {
			return nil
		}
		if n > maxFrame {
			return fmt.Errorf("read from tunnel: a frame of %d bytes, at most %d are allowed", n, maxFrame)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return cutOff(err)
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return fmt.Errorf("pass on from tunnel: %w", err)
		}
	}
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read from tunnel: %w", err)
}
