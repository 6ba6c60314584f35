package server

import "github.com/mote-dev/mote/internal/joinapi"

// Pin is the fingerprint of the cluster's CA that nodes know it by. It is known once Open has
// returned.
func (s *Server) Pin() string { return joinapi.Pin(s.pki.CA.Cert.Raw) }
