package cmd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/server"
	"github.com/mote-dev/mote/server/join"
	"github.com/mote-dev/mote/server/revocation"
)

// reissueTimeout is how long a server may take to write a new kubeconfig after the administrator's
// certificate was revoked.
const reissueTimeout = 10 * time.Second

func (p program) certificateCommand() *cli.Command {
	target := []cli.Flag{
		&cli.StringFlag{Name: "node",
			Usage: "`NAME` of a node: revoke all its certificates and keep it from joining again until `mote node " +
				"forget NAME`"},
		&cli.StringFlag{Name: "user", Usage: "`NAME` of a user: revoke every certificate issued to it until now"},
		&cli.StringFlag{Name: "serial", Usage: "serial number of one certificate, in `HEX`adecimal"},
		clusterFlag(),
	}
	const about = "FILE is a kubeconfig, of which all client certificates are meant, or a certificate. --kubeconfig " +
		"says which cluster to talk to, not what is revoked."
	return &cli.Command{
		Name:  "certificate",
		Usage: "revoke client certificates: a leaked kubeconfig, a lost node",
		Subcommands: []*cli.Command{
			{
				Name:        "revoke",
				Usage:       "refuse certificates at once, and close the connections that use them",
				ArgsUsage:   "[FILE]",
				Description: about,
				Flags: append([]cli.Flag{&cli.StringFlag{Name: "reason", Usage: "`TEXT` to remember why"}},
					target...),
				Action: p.withCluster(p.revoke),
			},
			{
				Name:        "unrevoke",
				Usage:       "accept revoked certificates again",
				ArgsUsage:   "[FILE]",
				Description: about,
				Flags:       target,
				Action:      p.withCluster(p.unrevoke),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list revocations",
				Flags:   []cli.Flag{outputFlag(), clusterFlag()},
				Action:  p.withCluster(p.listRevoked),
			},
			{
				Name:      "show",
				Usage:     "show the subjects and expiry dates of the certificates in a file; needs no cluster",
				ArgsUsage: "FILE",
				Flags:     []cli.Flag{outputFlag()},
				Action:    p.showCertificates,
			},
		},
	}
}

// lateFlags refuses flags behind a command's words, which would be taken for words.
func (program) lateFlags(c *cli.Context) error {
	for _, word := range c.Args().Slice() {
		if len(word) > 1 && strings.HasPrefix(word, "-") {
			return fmt.Errorf("flag %s comes too late: write `%s`", word,
				strings.TrimSpace(c.Command.HelpName+" [flags] "+c.Command.ArgsUsage))
		}
	}
	return nil
}

// withCluster gives an action the cluster, after checking what it is told.
func (p program) withCluster(action func(*cli.Context, *cluster) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := p.lateFlags(c); err != nil {
			return err
		}
		if c.Command.ArgsUsage == "" {
			if err := noArgs(c); err != nil {
				return err
			}
		} else if err := oneTarget(c); err != nil {
			return err
		}
		cl, err := p.cluster(c)
		if err != nil {
			return err
		}
		return action(c, cl)
	}
}

// oneTarget wants exactly one thing named.
func oneTarget(c *cli.Context) error {
	given := c.Args().Slice()
	for _, name := range []string{"node", "user", "serial"} {
		if c.IsSet(name) {
			if c.String(name) == "" {
				return fmt.Errorf("--%s is empty", name)
			}
			given = append(given, "--"+name)
		}
	}
	switch {
	case len(given) == 0 && c.IsSet("kubeconfig"):
		return fmt.Errorf(
			"say what is meant: `%s %s` for the certificate in that file; --kubeconfig only says which cluster to "+
				"talk to", c.Command.HelpName, c.String("kubeconfig"))
	case len(given) == 0:
		return fmt.Errorf(
			"say what is meant: `%s FILE` with a kubeconfig or certificate, or one of --node, --user, --serial",
			c.Command.HelpName)
	case len(given) > 1:
		return fmt.Errorf("%s are named together: one at a time", strings.Join(given, " and "))
	}
	return nil
}

// named is what the flags or the file of a command mean.
type named struct {
	entries []revocation.Entry
	// certs are those of the file.
	certs []*x509.Certificate
}

// target finds what a command is to be done to. Moments are the server's.
func (p program) target(c *cli.Context, cl *cluster) (named, error) {
	user := c.String("user")
	if node := c.String("node"); node != "" {
		user = revocation.NodeUser(node)
	}
	switch {
	case user != "":
		now, err := cl.now(c.Context)
		if err != nil {
			return named{}, err
		}
		// Clocks on the wire and certificates count in whole seconds.
		return named{entries: []revocation.Entry{revocation.ForUser(user, now.Add(time.Second))}}, nil
	case c.String("serial") != "":
		serial, err := revocation.ParseSerial(c.String("serial"))
		if err != nil {
			return named{}, err
		}
		return named{entries: []revocation.Entry{{Serial: serial}}}, nil
	}
	file := c.Args().First()
	certs, others, err := fileCertificates(file)
	if err != nil {
		return named{}, err
	}
	for _, fault := range others {
		fmt.Fprintf(p.stderr, "mote: left alone: %v\n", fault)
	}
	ours := signedBy(cl.config.CAData, certs)
	if len(ours) == 0 {
		return named{}, fmt.Errorf(
			"%s holds no certificate of this cluster: that of %q was signed by %q of another one; --kubeconfig says "+
				"which cluster to talk to",
			file, certs[0].Subject.CommonName, certs[0].Issuer.CommonName)
	}
	n := named{certs: ours}
	for _, cert := range ours {
		n.entries = append(n.entries, revocation.ForCertificate(cert))
	}
	return n, nil
}

func (p program) revoke(c *cli.Context, cl *cluster) error {
	n, err := p.target(c, cl)
	if err != nil {
		return err
	}
	if err := refuseServerNode(c, cl); err != nil {
		return err
	}
	by, err := cl.whoami(c.Context)
	if err != nil {
		return err
	}
	now, err := cl.now(c.Context)
	if err != nil {
		return err
	}
	for i, e := range n.entries {
		if err := p.refuseOwn(e); err != nil {
			return err
		}
		n.entries[i].Reason, n.entries[i].By, n.entries[i].Time = c.String("reason"), by, now.Truncate(time.Second)
	}
	if err := revocation.Add(c.Context, cl.client, n.entries...); err != nil {
		// The server may be faster with refusing than with answering: when the certificate in use
		// is among them, being refused says that it is done.
		if _, whoErr := cl.whoami(c.Context); !cl.isOneOf(n.entries) || !apierrors.IsUnauthorized(whoErr) {
			return err
		}
	}
	for _, e := range n.entries {
		p.sayRevoked(c.Context, cl, e)
	}
	return p.sayOwn(c.Context, cl, n.entries)
}

// refuseServerNode refuses to revoke a node in a server's process: it speaks to that server in
// memory, without a certificate.
func refuseServerNode(c *cli.Context, cl *cluster) error {
	name := c.String("node")
	if name == "" {
		return nil
	}
	nodes, err := join.ListNodes(c.Context, cl.client)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == name && n.Kind == join.KindServer {
			return fmt.Errorf(
				"node %s is a server's own and has no certificate to revoke: stop that server, or run it with "+
					"--disable-agent", name)
		}
	}
	return nil
}

// serverNames are users whose certificates a server made for itself, and the files they are in.
var serverNames = map[string]string{
	"kube-apiserver-kubelet-client": "apiserver-kubelet-client",
	"front-proxy-client":            "front-proxy-client",
	"kube-apiserver":                "apiserver",
}

// refuseOwn keeps the server's own certificates off the list: without them logs, exec and
// aggregated APIs end, and the list is not asked where they are shown.
func (p program) refuseOwn(e revocation.Entry) error {
	if strings.HasPrefix(e.User, "system:serviceaccount:") && e.Serial == "" {
		return fmt.Errorf(
			"%s has tokens, not certificates: delete the service account, or the secret or pod its token was made "+
				"for, with kubectl", e.User)
	}
	if _, own := serverNames[e.User]; own && e.Serial == "" {
		return fmt.Errorf("%s is the server itself: revoke single certificates of that name by file or --serial",
			e.User)
	}
	dataDir, err := p.machineSetting("data-dir", server.DefaultDataDir)
	if err != nil {
		return err
	}
	for user, name := range serverNames {
		file := filepath.Join(datadir.At(dataDir).TLS(), name+".crt")
		certs, _, err := fileCertificates(file)
		// Without the files, on another machine, the name is all there is to go by.
		own := err == nil && revocation.Serial(certs[0]) == e.Serial || err != nil && e.User == user
		if own {
			return fmt.Errorf(
				"%s is the server's own: to replace it, stop mote, remove %s and the key beside it, start mote, and "+
					"revoke this serial number then", e.Subject(), file)
		}
	}
	return nil
}

func (p program) sayRevoked(ctx context.Context, cl *cluster, e revocation.Entry) {
	switch node := e.Node(); {
	case node != "":
		fmt.Fprintf(p.stdout,
			"revoked node %s: it is refused from now on, and cannot join again until `mote node forget %s`\n", node,
			node)
		if _, err := cl.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			fmt.Fprintf(p.stderr, "mote: note that the cluster has no node %q now\n", node)
		}
	case e.Serial == "":
		fmt.Fprintf(p.stdout, "revoked user %s: every certificate issued until %s is refused from now on\n", e.User,
			e.IssuedBefore.Format(time.RFC3339))
	default:
		fmt.Fprintf(p.stdout, "revoked %s: it is refused from now on\n", e.Subject())
	}
}

// isOneOf says whether entries mean the certificate in use.
func (c *cluster) isOneOf(entries []revocation.Entry) bool {
	used, err := leaf(c.config.CertData)
	return err == nil && slices.ContainsFunc(entries, func(e revocation.Entry) bool { return e.Refuses(used) })
}

// sayOwn tells what becomes of the caller's own access, and on the server's machine waits until the
// server has written a new kubeconfig.
func (p program) sayOwn(ctx context.Context, cl *cluster, entries []revocation.Entry) error {
	if !cl.isOneOf(entries) {
		return nil
	}
	used, err := leaf(cl.config.CertData)
	if err != nil {
		return err
	}
	written, err := p.machineSetting("kubeconfig-output", server.DefaultKubeconfigOutput)
	if err != nil {
		return err
	}
	if filepath.Clean(cl.file) != filepath.Clean(written) &&
		!slices.Contains(used.Subject.Organization, "system:masters") {
		fmt.Fprintln(p.stdout, "this was the certificate you used yourself")
		return nil
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(reissueTimeout)
	defer timeout.Stop()
	for {
		if certs, _, err := fileCertificates(cl.file); err == nil && !certs[0].Equal(used) {
			break
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			fmt.Fprintf(p.stdout,
				"this was the certificate you used yourself; the server writes a new kubeconfig on its own machine, "+
					"as a rule to %s\n", server.DefaultKubeconfigOutput)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fmt.Fprintf(p.stdout, "the server has written a new administrator's kubeconfig to %s\n", cl.file)
	return nil
}

func (p program) unrevoke(c *cli.Context, cl *cluster) error {
	n, err := p.target(c, cl)
	if err != nil {
		return err
	}
	removed, err := revocation.Remove(c.Context, cl.client, func(e revocation.Entry) bool {
		return slices.ContainsFunc(n.entries, func(want revocation.Entry) bool {
			return want.Serial == e.Serial && (want.Serial != "" || want.User == e.User)
		})
	})
	if err != nil {
		return err
	}
	for _, e := range removed {
		fmt.Fprintf(p.stdout, "no longer revoked: %s\n", e.Subject())
	}
	left, _, err := revocation.Read(c.Context, cl.client)
	if err != nil {
		return err
	}
	for _, cert := range n.certs {
		for _, e := range left {
			if e.Refuses(cert) {
				return fmt.Errorf("certificate %s stays refused, because %s is revoked", revocation.Serial(cert),
					e.Subject())
			}
		}
	}
	if len(removed) == 0 {
		return errors.New("nothing of the kind is revoked: `mote certificate list` shows what is")
	}
	return nil
}

func (p program) listRevoked(c *cli.Context, cl *cluster) error {
	entries, faults, err := revocation.Read(c.Context, cl.client)
	if err != nil {
		return err
	}
	if entries == nil {
		entries = []revocation.Entry{}
	}
	err = p.print(c, entries, func() {
		if len(entries) == 0 {
			fmt.Fprintln(p.stdout, "nothing is revoked")
			return
		}
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "REVOKED\tWHAT\tBY\tREASON")
		for _, e := range entries {
			what := e.Subject()
			if e.MayReturn {
				what += " (may join again)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Time.Format(time.RFC3339), what, e.By, e.Reason)
		}
		_ = w.Flush()
	})
	return errors.Join(append(faults, err)...)
}

// shownCertificate is what `mote certificate show` says of one.
type shownCertificate struct {
	User   string    `json:"user"`
	Groups []string  `json:"groups,omitempty"`
	Serial string    `json:"serial"`
	Issuer string    `json:"issuer"`
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
}

func (p program) showCertificates(c *cli.Context) error {
	if err := p.lateFlags(c); err != nil {
		return err
	}
	if c.NArg() != 1 {
		return fmt.Errorf("write `%s FILE`, with a kubeconfig or a certificate", c.Command.HelpName)
	}
	certs, others, err := fileCertificates(c.Args().First())
	if err != nil {
		return err
	}
	shown := make([]shownCertificate, len(certs))
	for i, cert := range certs {
		shown[i] = shownCertificate{
			User:   cert.Subject.CommonName,
			Groups: cert.Subject.Organization,
			Serial: revocation.Serial(cert),
			Issuer: cert.Issuer.CommonName,
			From:   cert.NotBefore,
			Until:  cert.NotAfter,
		}
	}
	err = p.print(c, shown, func() {
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "USER\tGROUPS\tVALID UNTIL\tSERIAL")
		for _, cert := range certs {
			until := cert.NotAfter.Format(time.RFC3339)
			if time.Now().After(cert.NotAfter) {
				until += " (has ended)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", cert.Subject.CommonName, groups(cert), until, revocation.Serial(cert))
		}
		_ = w.Flush()
		for _, fault := range others {
			fmt.Fprintf(p.stdout, "%v\n", fault)
		}
	})
	return err
}
