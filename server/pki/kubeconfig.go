package pki

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// Access says who may read a file.
type Access struct {
	Mode fs.FileMode
	// GID is the group the file belongs to.
	GID int
}

// WriteKubeconfig writes a kubeconfig for the administrator to file, with everything inside it.
// server is the URL clients are to use.
func (s *Set) WriteKubeconfig(file, server string, access Access) error {
	cert, err := os.ReadFile(s.Admin.CertFile)
	if err != nil {
		return fmt.Errorf("read administrator certificate: %w", err)
	}
	key, err := os.ReadFile(s.Admin.KeyFile)
	if err != nil {
		return fmt.Errorf("read administrator key: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["mote"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: s.CA.CertPEM}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts["mote"] = &clientcmdapi.Context{Cluster: "mote", AuthInfo: "admin"}
	config.CurrentContext = "mote"
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("create folder of kubeconfig %s: %w", file, err)
	}
	return atomicfile.WriteForGroup(file, data, access.Mode, access.GID)
}
