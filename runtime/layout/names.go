package layout

// Namespace is the containerd namespace of everything the kubelet sees.
const Namespace = "k8s.io"

// Files and folders that containerd's plugins keep below Paths.Root.
const (
	MetadataDB  = "io.containerd.metadata.v1.bolt/meta.db"
	Content     = "io.containerd.content.v1.content"
	CRI         = "io.containerd.grpc.v1.cri"
	Snapshotter = "io.containerd.snapshotter.v1." // a prefix: the snapshotter's name follows
)

// RebuildMark, in Paths.Marks, exists from when damaged records are set aside until the images are
// rebuilt from their content.
const RebuildMark = "rebuild"
