package runtime

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	utilexec "k8s.io/utils/exec"
)

// runtimeService is containerd's runtime service as the kubelet wants it.
type runtimeService struct {
	s       runtimeapi.RuntimeServiceServer
	dataDir string
	log     *zap.Logger
}

func (r *runtimeService) Version(ctx context.Context, apiVersion string) (*runtimeapi.VersionResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.Version, &runtimeapi.VersionRequest{Version: apiVersion})
	if err != nil {
		return nil, err
	}
	if resp.Version == "" || resp.RuntimeName == "" || resp.RuntimeApiVersion == "" || resp.RuntimeVersion == "" {
		return nil, incomplete("get version", "version or name")
	}
	return resp, nil
}

func (r *runtimeService) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig,
	handler string) (string, error) {
	if dir := config.GetLogDirectory(); dir != "" {
		// Without the mark, uninstall finds the logs only while the kubelet still has the pod.
		if err := markLogs(dir, r.dataDir); err != nil {
			r.log.Debug("cannot mark folder of logs as this node's", zap.String("path", dir), zap.Error(err))
		}
	}
	// The server keeps the configuration, so it gets a copy, as over a connection.
	resp, err := call(ctx, 2*criTimeout, r.s.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{
		Config:         proto.CloneOf(config),
		RuntimeHandler: handler,
	})
	if err != nil {
		return "", err
	}
	if resp.PodSandboxId == "" {
		return "", incomplete("run pod sandbox", "id")
	}
	return resp.PodSandboxId, nil
}

func (r *runtimeService) StopPodSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, criTimeout, r.s.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (r *runtimeService) RemovePodSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, criTimeout, r.s.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (r *runtimeService) PodSandboxStatus(ctx context.Context, id string,
	verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.PodSandboxStatus,
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: verbose})
	if err != nil {
		return nil, err
	}
	if s := resp.Status; s != nil && (s.Id == "" || s.Metadata == nil || s.Metadata.Name == "" ||
		s.Metadata.Namespace == "" || s.Metadata.Uid == "" || s.CreatedAt == 0) {
		return nil, incomplete("get pod sandbox status", "id, metadata or creation time")
	}
	if resp.Status != nil {
		resp.Status.CreatedAt = past(resp.Status.CreatedAt, time.Now())
	}
	return resp, nil
}

func (r *runtimeService) ListPodSandbox(ctx context.Context,
	filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	resp, err := call(ctx, criTimeout, r.s.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: filter})
	return pastSandboxes(resp.GetItems(), time.Now()), err
}

func (r *runtimeService) UpdatePodSandboxResources(ctx context.Context,
	req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return call(ctx, criTimeout, r.s.UpdatePodSandboxResources, req)
}

func (r *runtimeService) CreateContainer(ctx context.Context, sandboxID string, config *runtimeapi.ContainerConfig,
	sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	resp, err := call(ctx, criTimeout, r.s.CreateContainer, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  sandboxID,
		Config:        proto.CloneOf(config),
		SandboxConfig: proto.CloneOf(sandboxConfig),
	})
	if err != nil {
		return "", err
	}
	if resp.ContainerId == "" {
		return "", incomplete("create container", "id")
	}
	return resp.ContainerId, nil
}

func (r *runtimeService) StartContainer(ctx context.Context, id string) error {
	_, err := call(ctx, criTimeout, r.s.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (r *runtimeService) StopContainer(ctx context.Context, id string, timeout int64) error {
	// The limit leaves time for the kill after the grace period.
	_, err := call(ctx, criTimeout+time.Duration(timeout)*time.Second, r.s.StopContainer,
		&runtimeapi.StopContainerRequest{ContainerId: id, Timeout: timeout})
	return err
}

func (r *runtimeService) RemoveContainer(ctx context.Context, id string) error {
	_, err := call(ctx, criTimeout, r.s.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (r *runtimeService) ListContainers(ctx context.Context,
	filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	resp, err := call(ctx, criTimeout, r.s.ListContainers, &runtimeapi.ListContainersRequest{Filter: filter})
	return pastContainers(resp.GetContainers(), time.Now()), err
}

func (r *runtimeService) ContainerStatus(ctx context.Context, id string,
	verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.ContainerStatus,
		&runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
	if err != nil {
		return nil, err
	}
	if s := resp.Status; s != nil && (s.Id == "" || s.Metadata == nil || s.Metadata.Name == "" || s.CreatedAt == 0 ||
		s.Image == nil || s.Image.Image == "" || s.ImageRef == "") {
		return nil, incomplete("get container status", "id, metadata, image or creation time")
	}
	if resp.Status != nil {
		pastStatus(resp.Status, time.Now())
	}
	return resp, nil
}

func (r *runtimeService) UpdateContainerResources(ctx context.Context, id string,
	resources *runtimeapi.ContainerResources) error {
	_, err := call(ctx, criTimeout, r.s.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id,
		Linux:       proto.CloneOf(resources.GetLinux()),
		Windows:     resources.GetWindows(),
	})
	return err
}

func (r *runtimeService) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout,
	stderr []byte, err error) {
	limit := time.Duration(0)
	if timeout > 0 {
		limit = criTimeout + timeout
	}
	resp, err := call(ctx, limit, r.s.ExecSync,
		&runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(timeout.Seconds())})
	if err != nil {
		// Probes recognise a command that timed out by this error.
		if status.Code(err) == codes.DeadlineExceeded {
			err = fmt.Errorf("%w: %q timed out after %s", criclient.ErrCommandTimedOut, strings.Join(cmd, " "), timeout)
		}
		return nil, nil, err
	}
	if resp.ExitCode != 0 {
		err = utilexec.CodeExitError{
			Err:  fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), resp.ExitCode, resp.Stderr),
			Code: int(resp.ExitCode),
		}
	}
	return resp.Stdout, resp.Stderr, err
}

func (r *runtimeService) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.Exec, req)
	if err == nil && resp.Url == "" {
		return nil, incomplete("exec", "URL")
	}
	return resp, err
}

func (r *runtimeService) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse,
	error) {
	resp, err := call(ctx, criTimeout, r.s.Attach, req)
	if err == nil && resp.Url == "" {
		return nil, incomplete("attach", "URL")
	}
	return resp, err
}

func (r *runtimeService) PortForward(ctx context.Context,
	req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.PortForward, req)
	if err == nil && resp.Url == "" {
		return nil, incomplete("forward port", "URL")
	}
	return resp, err
}

func (r *runtimeService) ReopenContainerLog(ctx context.Context, id string) error {
	_, err := call(ctx, criTimeout, r.s.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	return err
}

func (r *runtimeService) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) error {
	if req == nil || req.Timeout < 0 {
		return errors.New("checkpoint container: options must be given, their timeout not negative")
	}
	_, err := call(ctx, max(criTimeout, time.Duration(req.Timeout)*time.Second), r.s.CheckpointContainer, req)
	return err
}

func (r *runtimeService) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) error {
	_, err := call(ctx, 2*criTimeout, r.s.CheckpointPod, req)
	return err
}

func (r *runtimeService) RestorePod(ctx context.Context,
	req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return call(ctx, 2*criTimeout, r.s.RestorePod, req)
}

func (r *runtimeService) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	resp, err := call(ctx, criTimeout, r.s.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	return resp.GetStats(), err
}

func (r *runtimeService) ListContainerStats(ctx context.Context,
	filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	resp, err := call(ctx, criTimeout, r.s.ListContainerStats, &runtimeapi.ListContainerStatsRequest{Filter: filter})
	return resp.GetStats(), err
}

func (r *runtimeService) PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	resp, err := call(ctx, criTimeout, r.s.PodSandboxStats, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	return resp.GetStats(), err
}

func (r *runtimeService) ListPodSandboxStats(ctx context.Context,
	filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	resp, err := call(ctx, criTimeout, r.s.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
	return resp.GetStats(), err
}

func (r *runtimeService) ListMetricDescriptors(ctx context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	resp, err := call(ctx, criTimeout, r.s.ListMetricDescriptors, &runtimeapi.ListMetricDescriptorsRequest{})
	return resp.GetDescriptors(), err
}

func (r *runtimeService) ListPodSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	resp, err := call(ctx, criTimeout, r.s.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{})
	return resp.GetPodMetrics(), err
}

func (r *runtimeService) UpdateRuntimeConfig(ctx context.Context, config *runtimeapi.RuntimeConfig) error {
	_, err := call(ctx, criTimeout, r.s.UpdateRuntimeConfig,
		&runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: config})
	return err
}

func (r *runtimeService) Status(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	resp, err := call(ctx, criTimeout, r.s.Status, &runtimeapi.StatusRequest{Verbose: verbose})
	if err == nil && len(resp.GetStatus().GetConditions()) < 2 {
		return nil, incomplete("get runtime status", "conditions")
	}
	return resp, err
}

func (r *runtimeService) RuntimeConfig(ctx context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return call(ctx, criTimeout, r.s.RuntimeConfig, &runtimeapi.RuntimeConfigRequest{})
}

// Close is part of the interface; there is no connection to close.
func (r *runtimeService) Close(context.Context) error { return nil }
