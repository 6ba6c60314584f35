package runtime

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageService is containerd's image service as the kubelet wants it.
type imageService struct {
	s runtimeapi.ImageServiceServer
}

func (i *imageService) ListImages(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	resp, err := call(ctx, criTimeout, i.s.ListImages, &runtimeapi.ListImagesRequest{Filter: filter})
	return resp.GetImages(), err
}

func (i *imageService) ImageStatus(ctx context.Context, image *runtimeapi.ImageSpec,
	verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	resp, err := call(ctx, criTimeout, i.s.ImageStatus, &runtimeapi.ImageStatusRequest{Image: image, Verbose: verbose})
	if err != nil {
		return nil, err
	}
	if resp.Image != nil && (resp.Image.Id == "" || resp.Image.Size == 0) {
		return nil, incomplete("get image status", "id or size")
	}
	return resp, nil
}

func (i *imageService) PullImage(ctx context.Context, image *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig,
	sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	// A pull has no limit of its own: it is cancelled when nothing arrives.
	resp, err := call(ctx, 0, i.s.PullImage, &runtimeapi.PullImageRequest{
		Image:         proto.CloneOf(image),
		Auth:          auth,
		SandboxConfig: proto.CloneOf(sandboxConfig),
	})
	if err != nil {
		// The kubelet compares the text of errors without a code with its own.
		if s, ok := status.FromError(err); ok && s.Code() == codes.Unknown {
			return "", errors.New(s.Message())
		}
		return "", err
	}
	if resp.ImageRef == "" {
		return "", incomplete("pull image", "reference")
	}
	return resp.ImageRef, nil
}

func (i *imageService) RemoveImage(ctx context.Context, image *runtimeapi.ImageSpec) error {
	_, err := call(ctx, criTimeout, i.s.RemoveImage, &runtimeapi.RemoveImageRequest{Image: image})
	return err
}

func (i *imageService) ImageFsInfo(ctx context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	return call(ctx, criTimeout, i.s.ImageFsInfo, &runtimeapi.ImageFsInfoRequest{})
}

// Close is part of the interface; there is no connection to close.
func (i *imageService) Close(context.Context) error { return nil }
