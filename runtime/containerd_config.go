package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/registry"
)

const (
	snapshotterOverlay = "overlayfs"
	snapshotterNative  = "native"

	cgroupDriverSystemd = "systemd"
	cgroupDriverFS      = "cgroupfs"

	runtimeName = "runc"

	// The kubelet reads container statistics through cAdvisor, so containerd's own collectors only
	// answer `crictl stats`: rarely is often enough.
	statsPeriod        = "10m"
	statsRetention     = "30m"
	snapshotStatsEvery = 60 // seconds; the kubelet asks for image disk use through it
)

// pluginSettings returns the settings of each containerd plugin that does not run with its
// defaults, by plugin URI.
func pluginSettings(c Config, p layout.Paths, b bundle.Bundle, snapshotter string,
	logins map[string]registry.Login, restrictOOM bool) map[string]any {
	id := func(t plugin.Type, name string) string { return t.String() + "." + name }
	return map[string]any{
		id(plugins.ShimPlugin, "manager"): map[string]any{
			"socket_dir": p.Shims,
		},
		id(plugins.TaskMonitorPlugin, "cgroups"): map[string]any{
			"no_prometheus": true,
		},
		id(plugins.GCPlugin, "scheduler"): map[string]any{
			// Content that is on disk but not in the metadata may be about to be recorded again by
			// the images rebuilt at start.
			"startup_delay": "1m",
		},
		id(plugins.TransferPlugin, "local"): map[string]any{
			"config_path":              p.Registries,
			"max_concurrent_downloads": c.MaxConcurrentDownloads,
			"unpack_config": []map[string]any{{
				"platform":    platforms.Format(platforms.DefaultSpec()),
				"snapshotter": snapshotter,
				"differ":      "walking",
			}},
		},
		id(plugins.CRIServicePlugin, "images"): map[string]any{
			"snapshotter":              snapshotter,
			"pinned_images":            map[string]any{"sandbox": b.Manifest.PauseImage},
			"registry":                 map[string]any{"config_path": p.Registries, "configs": registryConfigs(logins)},
			"max_concurrent_downloads": c.MaxConcurrentDownloads,
			// Without it a power cut soon after a pull leaves files of length zero in a snapshot
			// the metadata calls complete.
			"image_pull_with_sync_fs": true,
			"use_local_image_pull":    true,
			"stats_collect_period":    snapshotStatsEvery,
		},
		id(plugins.CRIServicePlugin, "runtime"): map[string]any{
			"restrict_oom_score_adj":       restrictOOM,
			"netns_mounts_under_state_dir": true,
			"stats_collect_period":         statsPeriod,
			"stats_retention_period":       statsRetention,
			// Devices handed to a container belong to the user it runs as, as unprivileged
			// workloads with device plugins expect.
			"device_ownership_from_security_context": true,
			"cni": map[string]any{
				"bin_dirs":              []string{b.Dir},
				"conf_dir":              p.CNIConf,
				"max_conf_num":          1,
				"use_internal_loopback": true,
			},
			"containerd": map[string]any{
				"default_runtime_name": runtimeName,
				"runtimes": map[string]any{runtimeName: map[string]any{
					"runtime_type": plugins.RuntimeRuncV2,
					"sandboxer":    "podsandbox",
					"options": map[string]any{
						"BinaryName":    b.Path(bundle.Runc),
						"Root":          p.Runc,
						"SystemdCgroup": c.CgroupDriver == cgroupDriverSystemd,
					},
				}},
			},
		},
		id(plugins.GRPCPlugin, "cri"): map[string]any{
			// Exec, attach and port-forward are fetched by the kubelet in this process; port 0 lets
			// the kernel choose.
			"disable_tcp_service":   true,
			"stream_server_address": "127.0.0.1",
			"stream_server_port":    "0",
			"enable_tls_streaming":  false,
		},
	}
}

// registryConfigs are the logins as the image plugin takes them.
func registryConfigs(logins map[string]registry.Login) map[string]any {
	out := map[string]any{}
	for host, login := range logins {
		out[host] = map[string]any{"auth": login}
	}
	return out
}

// configure fills a plugin's configuration. A key the plugin does not know is an error: a new
// containerd would otherwise drop the setting silently.
func configure(settings map[string]any, r plugin.Registration) error {
	data, ok := settings[r.URI()]
	if !ok || r.Config == nil {
		return nil
	}
	encoded, err := toml.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode settings of %s: %w", r.URI(), err)
	}
	if err := toml.NewDecoder(bytes.NewReader(encoded)).DisallowUnknownFields().Decode(r.Config); err != nil {
		return fmt.Errorf("set up %s: %w", r.URI(), err)
	}
	return nil
}

var errNoDType = errors.New("file system does not report the types of folder entries (d_type)")

// overlayUnsupported returns why overlayfs does not work in root, or nil if it does. Any failure
// that is not known to mean that is returned as err: a snapshotter chosen by mistake hides the
// images and containers of the other one.
func overlayUnsupported(root string) (reason, err error) {
	typed, err := continuity.SupportsDType(root)
	if err != nil {
		return nil, fmt.Errorf("check file system of %s: %w", root, err)
	}
	if !typed {
		return errNoDType, nil
	}
	err = overlayutils.SupportsMultipleLowerDir(root)
	if err == nil {
		// It mounts, and does not write: an upper folder without what overlayfs needs is read-only.
		err = hostcheck.ThisHost().TryOverlay(root)
	}
	if hostcheck.MeansNoOverlay(err) {
		return err, nil
	}
	return nil, err
}

// usedSnapshotter returns the only snapshotter that has been used in root, or "" if it was none or
// both.
func usedSnapshotter(root string) string {
	used := ""
	for _, name := range []string{snapshotterOverlay, snapshotterNative} {
		if _, err := os.Stat(filepath.Join(root, layout.Snapshotter+name)); err != nil {
			continue
		}
		if used != "" {
			return ""
		}
		used = name
	}
	return used
}

// lacksSysResource reports whether this process may not lower oom_score_adj. runc then fails to
// start the pause container, which asks for -998, unless scores are restricted.
func lacksSysResource() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return true
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}

// wanted reports whether a registered plugin is started. Another package linked into the process
// may have registered more than plugins.go imports.
func wanted(r *plugin.Registration, snapshotter string) bool {
	switch r.Type {
	case plugins.SnapshotPlugin:
		return r.ID == snapshotter
	case plugins.DiffPlugin:
		return r.ID == "walking"
	case plugins.NRIApiPlugin, plugins.ServerPlugin, plugins.MetricsPlugin, plugins.HTTPHandler,
		plugins.ImageVerifierPlugin, plugins.TracingProcessorPlugin, plugins.MountHandlerPlugin:
		return false
	}
	return !slices.Contains([]string{"restart", "tracing"}, r.ID)
}
