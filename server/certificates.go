package server

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/internal/wallclock"
)

const (
	// renewEvery is the time between two looks at the certificates. They are also looked at when
	// the clock was set.
	renewEvery = 10 * time.Minute
	// endsSoon is how long before the cluster's CA ends the log begins to say so, and warnEvery how
	// often it does.
	endsSoon  = 365 * 24 * time.Hour
	warnEvery = 30 * 24 * time.Hour
)

// keepCertificates renews the server's own certificates, and those of a node in its process, for as
// long as it runs. Upstream's servers and clients read the files again when they change: servers at
// once, clients within five minutes.
func (s *Server) keepCertificates(ctx context.Context) error {
	log := s.config.Logger.Named("pki")
	var looked, warned time.Time
	failing, failures := false, retry.Failures{}
	// written says that the kubeconfig has the administrator's present certificate.
	written := true
	look := func(now time.Time, set time.Duration) error {
		if set != 0 {
			log.Warn("the machine's clock was set", zap.Duration("by", set.Round(time.Second)))
		}
		if since := now.Sub(looked); set == 0 && since < renewEvery && !failing {
			return nil
		}
		looked = now
		renewed, err := s.pki.Renew(s.names(), now)
		for _, pair := range renewed {
			log.Info("renewed certificate", zap.String("file", pair.CertFile))
		}
		if slices.Contains(renewed, s.pki.Admin) {
			written = false
			select {
			case s.renewedAdmin <- struct{}{}:
			default:
			}
		}
		if err == nil && !written {
			err = s.writeKubeconfig()
			written = err == nil
		}
		failing = err != nil
		switch {
		case !failing:
			failures.Recovered()
		case failures.News(err):
			log.Error("certificates not renewed, trying again", zap.Error(err))
		}
		if end := s.pki.End(); now.After(end.Add(-endsSoon)) && now.Sub(warned).Abs() > warnEvery {
			warned = now
			log.Warn("the cluster's certificate authority ends: see docs/certificates.md on how to make a new one",
				zap.Time("end", end))
		}
		return nil
	}
	if err := look(time.Now(), 0); err != nil {
		return err
	}
	return wallclock.Watch(ctx, look)
}
