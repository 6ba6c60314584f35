package cmd

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// UI tells a person or a log what a long command is doing.
type UI interface {
	// Phase says that something has begun; the function it returns, that it has ended. Several
	// phases may run at once.
	Phase(name string) func(err error)
	// Progress says how far long work is: the phase it belongs to, what it is about, and how much
	// is done. Total is zero when it is not known.
	Progress(phase, name string, done, total int64)
	// Ready says that the command has come up.
	Ready(r Ready)
}

// Ready is what there is to say once a server or a node has come up.
type Ready struct {
	// Took is the time from the start of the process's work.
	Took time.Duration
	// NodeName is empty when no node runs beside the server.
	NodeName string
	// URL is where the API server is reached from other machines; of a node alone, the server in
	// use. It is empty while none answers, for Offline.
	URL, Offline string
	// Kubeconfig is the administrator's file; empty on a machine without a server.
	Kubeconfig string
	// JoinCommand joins another machine; empty while that is not possible. It holds a token, so it
	// is for a person and not for a log.
	JoinCommand string
	// TokenFile is where that token lies.
	TokenFile string
}

// progressEvery is how often a log hears of progress: lines stay, unlike what a terminal shows.
const progressEvery = 5 * time.Second

// lineUI writes log lines, for a service.
type lineUI struct {
	log *zap.Logger
	now func() time.Time
	// begun holds, by phase and name, when work was last told of.
	begun *progressTimes
}

func newLineUI(log *zap.Logger) *lineUI {
	return &lineUI{log: log, now: time.Now, begun: newProgressTimes(progressEvery)}
}

func (u *lineUI) Phase(name string) func(error) {
	start := u.now()
	return func(err error) {
		took := zap.Duration("took", u.now().Sub(start).Round(time.Millisecond))
		if err != nil {
			// The error itself is told by who ends the process, in one line.
			u.log.Debug(name+": not done", took)
			return
		}
		u.log.Info(name+": done", took)
	}
}

func (u *lineUI) Progress(phase, name string, done, total int64) {
	finished := total > 0 && done >= total
	if !finished && !u.begun.due(phase+"\x00"+name, u.now()) {
		return
	}
	u.log.Info(phase+" "+name, zap.String("done", share(done, total)))
}

func (u *lineUI) Ready(r Ready) {
	fields := []zap.Field{zap.Duration("took", r.Took.Round(time.Millisecond))}
	if r.URL != "" {
		fields = append(fields, zap.String("url", r.URL))
	}
	if r.Offline != "" {
		fields = append(fields, zap.String("offline", r.Offline))
	}
	if r.Kubeconfig != "" {
		fields = append(fields, zap.String("kubeconfig", r.Kubeconfig))
	}
	if r.NodeName != "" {
		fields = append(fields, zap.String("node", r.NodeName))
	}
	if r.TokenFile != "" {
		fields = append(fields, zap.String("join", "`mote token create` prints how"), zap.String("token", r.TokenFile))
	}
	u.log.Info("mote is ready", fields...)
}

// share says how much of a total is done, in words a person takes in at a glance.
func share(done, total int64) string {
	if total <= 0 {
		return fmt.Sprintf("%.1f MB", float64(done)/1e6)
	}
	return fmt.Sprintf("%.1f of %.1f MB", float64(done)/1e6, float64(total)/1e6)
}
