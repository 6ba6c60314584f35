package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/resolvconf"
	"github.com/mote-dev/mote/internal/retry"
)

// maxPodResolvers is how many name servers libc reads from a resolv.conf.
const maxPodResolvers = 3

// podResolvers maintains the resolv.conf of pods with the host's DNS: the host's reachable name
// servers. The host's search domains are in it only if a setting names the host's file: they would
// leak names of the cluster to other DNS servers.
type podResolvers struct {
	file    string
	sources []string
	own     []netip.Addr
	// standIn are the cluster's DNS if this node serves it. They are the pods' resolvers while the
	// host has none: without any, libc asks the pod's own loopback.
	standIn []netip.Addr
	// search passes the search domains and options of the first source on.
	search bool
}

func newPodResolvers(file, given string, clusterDNS, standIn []netip.Addr) podResolvers {
	return podResolvers{
		file:    file,
		sources: resolvconf.Files(given),
		own:     clusterDNS,
		standIn: standIn,
		search:  given != "",
	}
}

// errSources means that the host's resolvers cannot be read.
var errSources = errors.New("read the host's resolvers")

// write writes the file and reports whether that changed it. If the host's resolvers cannot be
// read, a file that exists stays; follow logs the cause and tries again.
func (p podResolvers) write() (changed bool, err error) {
	if changed, err = p.update(); errors.Is(err, errSources) {
		return changed, nil
	}
	return changed, err
}

// update is write, with an error of errSources if the host's resolvers cannot be read.
func (p podResolvers) update() (changed bool, err error) {
	host, sourcesErr := dns.ReadHost(p.sources, p.own)
	if sourcesErr != nil {
		sourcesErr = fmt.Errorf("%w: %w", errSources, sourcesErr)
	}
	text := p.render(host)
	old, err := os.ReadFile(p.file)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("read resolvers of pods: %w", err)
	case err == nil && (sourcesErr != nil || bytes.Equal(old, text)):
		return false, sourcesErr
	}
	if err := atomicfile.Write(p.file, text, 0o644); err != nil {
		return false, err
	}
	return true, sourcesErr
}

// render returns the text of the file.
func (p podResolvers) render(host dns.Host) []byte {
	var out bytes.Buffer
	out.WriteString("# Written by mote from the host's resolvers.\n")
	servers := host.Resolvers
	if len(servers) == 0 {
		out.WriteString("# The host has none that pods can reach: the cluster's DNS stands in.\n")
		servers = p.standIn
	}
	for _, s := range servers[:min(len(servers), maxPodResolvers)] {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if p.search && len(host.Search) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(host.Search, " "))
	}
	if p.search && len(host.Options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(host.Options, " "))
	}
	return out.Bytes()
}

// note says why pods with the host's DNS have no resolver; empty if they have one. Where the
// cluster's DNS stands in, that is what says why it cannot resolve names outside of the cluster.
func (p podResolvers) note() string {
	host, err := dns.ReadHost(p.sources, p.own)
	if err != nil || len(host.Resolvers) > 0 || len(p.standIn) > 0 {
		return ""
	}
	return "pods with dnsPolicy Default have no resolver, as " + host.Fault() + ": " + noResolverRemedy
}

// noResolverRemedy is what to do about it.
const noResolverRemedy = "name one that pods can reach in a file given with --resolv-conf"

// rereadResolvers is the pause after the host's resolvers could not be read.
const rereadResolvers = 10 * time.Second

// follow writes the file again whenever the host's resolvers change, until ctx ends. Pods created
// from then on use them.
func (p podResolvers) follow(ctx context.Context, log *zap.Logger) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		// A host may have run out of watches; the present file stays right for most.
		log.Warn("changes of the host's resolvers do not reach pods until mote is restarted",
			zap.Error(hostcheck.WithLimit(err)))
		return nil
	}
	defer w.Close()
	var failures retry.Failures
	noted := ""
	for {
		// Network managers swap links and files, so the folders are watched. The list is computed
		// again after each event, as folders may have been created in the meantime, even during
		// this loop.
		var watched []string
		for now := p.folders(); !slices.Equal(watched, now); now = p.folders() {
			for _, dir := range now {
				if err := w.Add(dir); err != nil {
					log.Debug("folder of resolvers not watched", zap.String("folder", dir), zap.Error(err))
				}
			}
			watched = now
		}
		changed, err := p.update()
		var again <-chan time.Time
		switch {
		case err != nil:
			if failures.News(err) {
				log.Warn("resolvers of pods not updated, trying again", zap.Error(err))
			}
			again = time.After(rereadResolvers)
		case failures.Recovered(), changed:
			log.Info("the host's resolvers have changed: pods created from now on use them")
		}
		if note := p.note(); note != noted {
			if noted = note; note != "" {
				log.Warn(note)
			}
		}
		if !p.awaitEvent(ctx, w, again, log) {
			return nil
		}
	}
}

// awaitEvent returns true once one of the sources may have changed or again fires, and false when
// ctx ends.
func (p podResolvers) awaitEvent(
	ctx context.Context, w *fsnotify.Watcher, again <-chan time.Time, log *zap.Logger,
) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again:
			return true
		case e := <-w.Events:
			if p.concerns(e.Name) {
				return true
			}
		case err := <-w.Errors:
			log.Debug("watch resolvers", zap.Error(err))
			return true
		}
	}
}

// folders returns the folders of the sources, and of the files that links among them point to.
func (p podResolvers) folders() []string {
	var out []string
	for _, s := range p.sources {
		out = append(out, existing(filepath.Dir(s)))
		if target, err := filepath.EvalSymlinks(s); err == nil && filepath.Dir(target) != filepath.Dir(s) {
			out = append(out, filepath.Dir(target))
		}
	}
	return out
}

// existing returns dir, or the nearest parent that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// concerns reports whether a change of path may change the content of a source.
func (p podResolvers) concerns(path string) bool {
	for _, s := range p.sources {
		if within(s, path) {
			return true
		}
		if target, err := filepath.EvalSymlinks(s); err == nil && within(target, path) {
			return true
		}
	}
	return false
}

// within reports whether file is path or below it.
func within(file, path string) bool {
	rest, err := filepath.Rel(path, file)
	return err == nil && filepath.IsLocal(rest)
}
