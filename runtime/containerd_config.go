package runtime

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
)

const (
	snapshotterOverlay = "overlayfs"
	snapshotterNative  = "native"

	cgroupDriverSystemd = "systemd"
	cgroupDriverFS      = "cgroupfs"

	runtimeName = "runc"

	// The kubelet reads container statistics through cAdvisor, so containerd's
	// own collectors only answer `crictl stats`: rarely is often enough.
	statsPeriod        = "10m"
	statsRetention     = "30m"
	snapshotStatsEvery = 60 // seconds; the kubelet asks for image disk use through it
)

// pluginSettings returns the settings of each containerd plugin that does not
// run with its defaults, by plugin URI.
func pluginSettings(c Config, p layout.Paths, b bundle.Bundle, snapshotter string, reg registries, restrictOOM bool) map[string]any {
	id := func(t plugin.Type, name string) string { return t.String() + "." + name }
	return map[string]any{
		id(plugins.ShimPlugin, "manager"): map[string]any{
			"socket_dir": p.Shims,
		},
		id(plugins.TaskMonitorPlugin, "cgroups"): map[string]any{
			"no_prometheus": true,
		},
		id(plugins.GCPlugin, "scheduler"): map[string]any{
			// What is on disk but not in the metadata may be about to be
			// adopted by the images loaded at start.
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
			"registry":                 map[string]any{"config_path": p.Registries, "configs": reg.credentials()},
			"max_concurrent_downloads": c.MaxConcurrentDownloads,
			// Without it a power cut soon after a pull leaves files of length
			// zero in a snapshot the metadata calls complete.
			"image_pull_with_sync_fs": true,
			"use_local_image_pull":    true,
			"stats_collect_period":    snapshotStatsEvery,
		},
		id(plugins.CRIServicePlugin, "runtime"): map[string]any{
			"restrict_oom_score_adj":       restrictOOM,
			"netns_mounts_under_state_dir": true,
			"stats_collect_period":         statsPeriod,
			"stats_retention_period":       statsRetention,
			// Devices handed to a container belong to the user it runs as, as
			// unprivileged workloads with device plugins expect.
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
			// Exec, attach and port-forward are fetched by the kubelet in this
			// process; port 0 lets the kernel choose.
			"disable_tcp_service":   true,
			"stream_server_address": "127.0.0.1",
			"stream_server_port":    "0",
			"enable_tls_streaming":  false,
		},
	}
}

// configure fills a plugin's configuration. A key the plugin does not know is
// an error: it means containerd has moved on and the setting is lost.
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

// chooseSnapshotter prefers overlayfs, and falls back to copying where the file
// system cannot carry it.
func chooseSnapshotter(c Config, p layout.Paths) (name string, reason error) {
	if c.Snapshotter != "" {
		return c.Snapshotter, nil
	}
	if err := overlayutils.Supported(p.Root); err != nil {
		return snapshotterNative, err
	}
	return snapshotterOverlay, nil
}

// lacksSysResource reports whether this process may not lower oom_score_adj. If
// so, runc would fail to start the pause container, which asks for -998.
func lacksSysResource() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return true
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}

// wanted says whether a registered plugin is started. Another package linked
// into the process may have registered more than plugins.go asks for.
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
