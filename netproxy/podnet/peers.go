package podnet

// ensurePeers brings routes to other nodes' pods to the wanted state.
func (n *Network) ensurePeers(self Node, peers []Node) error { return nil }
