package cmd

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// frames turn while something is under way.
var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// frameTime is how long a frame stands.
const frameTime = 100 * time.Millisecond

// terminalUI draws a line for each phase: those that ended stay, the ones under way turn in the
// last line. Log lines pass through it, so that they do not tear that line apart.
type terminalUI struct {
	out   io.Writer
	width func() int
	// plain leaves out colours and weights.
	plain bool
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	running []*phase
	detail  string
	frame   int
	// drawn says that the status line stands on the screen.
	drawn bool

	stop chan struct{}
	done sync.WaitGroup
}

type phase struct {
	name  string
	start time.Time
}

// newTerminalUI returns a UI that draws until close.
func newTerminalUI(out io.Writer, plain bool, width func() int) *terminalUI {
	u := &terminalUI{
		out:   out,
		width: width,
		plain: plain,
		now:   time.Now,
		stop:  make(chan struct{}),
	}
	u.done.Go(func() {
		ticker := time.NewTicker(frameTime)
		defer ticker.Stop()
		for {
			select {
			case <-u.stop:
				return
			case <-ticker.C:
				u.turn()
			}
		}
	})
	return u
}

// close stops drawing and clears the status line.
func (u *terminalUI) close() {
	close(u.stop)
	u.done.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.clear()
}

func (u *terminalUI) turn() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.running) == 0 {
		// An idle server must not wake a terminal ten times a second for nothing; it costs one
		// comparison.
		return
	}
	u.frame = (u.frame + 1) % len(frames)
	u.draw()
}

// Write lets a log line through.
func (u *terminalUI) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.clear()
	n, err := u.out.Write(p)
	u.draw()
	return n, err
}

func (u *terminalUI) Phase(name string) func(error) {
	ph := &phase{name: name, start: u.now()}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running = append(u.running, ph)
	u.draw()
	return func(err error) {
		u.mu.Lock()
		defer u.mu.Unlock()
		i := slices.Index(u.running, ph)
		if i < 0 {
			return
		}
		u.running = slices.Delete(u.running, i, i+1)
		u.clear()
		mark := u.paint("32", "✓")
		if err != nil {
			mark = u.paint("31", "✗")
		}
		fmt.Fprintf(u.out, "%s %s %s\n", mark, name, u.paint("2", seconds(u.now().Sub(ph.start))))
		u.detail = ""
		u.draw()
	}
}

func (u *terminalUI) Progress(what, name string, done, total int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.detail = fmt.Sprintf("%s %s %s", what, name, share(done, total))
	if total > 0 && done >= total {
		u.detail = ""
	}
	u.draw()
}

func (u *terminalUI) Ready(r Ready) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.clear()
	fmt.Fprintf(u.out, "\n%s after %s\n", u.paint("1", "mote is ready"), seconds(r.Took))
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(u.out, "  %-11s %s\n", label, text)
		}
	}
	line("API server", cmp.Or(r.URL, r.Offline))
	line("node", r.NodeName)
	line("kubeconfig", r.Kubeconfig)
	if r.Kubeconfig != "" {
		line("try", "mote kubectl get nodes")
	}
	line("join", r.JoinCommand)
	fmt.Fprintln(u.out, "Stop it with Ctrl-C; pods run on.")
	u.draw()
}

// draw puts the status line on the screen. The caller holds mu.
func (u *terminalUI) draw() {
	u.clear()
	if len(u.running) == 0 {
		return
	}
	names := make([]string, len(u.running))
	for i, ph := range u.running {
		names[i] = ph.name
	}
	text := strings.Join(names, ", ")
	if u.detail != "" {
		text += ": " + u.detail
	}
	text += " " + seconds(u.now().Sub(u.running[0].start))
	// A line that wraps could not be cleared again.
	if room := u.width() - 3; room > 0 && len([]rune(text)) > room {
		text = string([]rune(text)[:room])
	}
	fmt.Fprintf(u.out, "%s %s", frames[u.frame], text)
	u.drawn = true
}

func (u *terminalUI) clear() {
	if u.drawn {
		fmt.Fprint(u.out, "\r\x1b[K")
		u.drawn = false
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// paint gives text a colour or weight of the terminal.
func (u *terminalUI) paint(code, text string) string {
	if u.plain {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// plain reports whether the user or the terminal wants no colours, see https://no-color.org.
func (p program) plain() bool {
	set, _ := p.lookupEnv("NO_COLOR")
	terminal, _ := p.lookupEnv("TERM")
	return set != "" || terminal == "dumb"
}
