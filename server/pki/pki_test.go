package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/internal/wallclock"
)

var (
	now   = time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)
	names = Names{DNSNames: []string{"localhost", "kubernetes"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
)

func open(t *testing.T, dir string, n Names, at time.Time) *Set {
	t.Helper()
	s, err := Open(dir, n, at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func leaf(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestOpen_SecondTimeKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, names, now)
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
		if info, err := e.Info(); err != nil || (filepath.Ext(e.Name()) == ".key" && info.Mode().Perm() != 0o600) {
			t.Errorf("%s has mode %v (%v), want 0600 for keys", e.Name(), info.Mode(), err)
		}
	}
	second := open(t, dir, names, now.Add(24*time.Hour))
	if first.CA.Pin() != second.CA.Pin() || len(first.CA.Pin()) != 64 {
		t.Errorf("pin changed from %s to %s", first.CA.Pin(), second.CA.Pin())
	}
	for name, before := range files {
		if after, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(after) != before {
			t.Errorf("%s changed (%v)", name, err)
		}
	}
}

func TestOpen_LeavesAreMadeAnew(t *testing.T) {
	for _, row := range []struct {
		name    string
		spoil   func(t *testing.T, s *Set)
		names   Names
		at      time.Time
		renewed bool
	}{
		{"nothing changed", nil, names, now, false},
		{"about to end", nil, names, now.Add(leafLifetime - renewBefore + time.Hour), true},
		{"ended a year ago", nil, names, now.Add(2 * leafLifetime), true},
		{"another address", nil,
			Names{DNSNames: names.DNSNames, IPs: append([]net.IP{net.IPv4(192, 0, 2, 7)}, names.IPs...)}, now, true},
		{"the clock is lost", nil, names, time.Unix(0, 0), false},
		{"a name fewer", nil, Names{DNSNames: names.DNSNames[:1], IPs: names.IPs}, now, false},
		{"damaged", func(t *testing.T, s *Set) {
			if err := os.WriteFile(s.APIServer.CertFile, []byte("no certificate"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, names, now, true},
		{"key lost", func(t *testing.T, s *Set) {
			if err := os.Remove(s.APIServer.KeyFile); err != nil {
				t.Fatal(err)
			}
		}, names, now, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, names, now)
			before := leaf(t, s.APIServer)
			if row.spoil != nil {
				row.spoil(t, s)
			}
			s = open(t, dir, row.names, row.at)
			after := leaf(t, s.APIServer)
			if renewed := before.SerialNumber.Cmp(after.SerialNumber) != 0; renewed != row.renewed {
				t.Errorf("renewed: %v, want %v", renewed, row.renewed)
			}
			roots := x509.NewCertPool()
			roots.AddCert(s.CA.Cert)
			if _, err := after.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: base(row.at),
				DNSName: "localhost"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOpen_DamagedAuthorityIsRefused(t *testing.T) {
	for _, file := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "service-account.key"} {
		for name, spoil := range map[string]func(path string) error{
			"garbage":  func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
			"cut half": func(path string) error { return cut(path) },
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				dir := t.TempDir()
				open(t, dir, names, now)
				path := filepath.Join(dir, file)
				if err := spoil(path); err != nil {
					t.Fatal(err)
				}
				damaged, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Open(dir, names, now); !errors.Is(err, ErrDamaged) {
					t.Errorf("opened with %v, want ErrDamaged", err)
				}
				if after, err := os.ReadFile(path); err != nil || string(after) != string(damaged) {
					t.Errorf("the damaged file was replaced (%v)", err)
				}
			})
		}
	}
}

// Only content that does not parse is damaged. A file that cannot be read may be intact: the advice
// to remove it would throw the authority away.
func TestOpen_UnreadableAuthorityIsNotDamaged(t *testing.T) {
	for _, file := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key",
		"service-account.key"} {
		for name, row := range map[string]struct {
			spoil func(t *testing.T, path string)
			cause error
			says  string
		}{
			"too many open files": {func(t *testing.T, _ string) { noMoreFiles(t) }, syscall.EMFILE, "ulimit"},
			"a folder": {func(t *testing.T, path string) {
				if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
					t.Fatal(err)
				}
			}, syscall.EISDIR, "disk"},
			"a link to itself": {func(t *testing.T, path string) {
				if err := errors.Join(os.Remove(path), os.Symlink(path, path)); err != nil {
					t.Fatal(err)
				}
			}, syscall.ELOOP, "disk"},
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				dir := t.TempDir()
				open(t, dir, names, now)
				row.spoil(t, filepath.Join(dir, file))
				_, err := Open(dir, names, now)
				if !errors.Is(err, row.cause) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrIncomplete) ||
					errors.Is(err, os.ErrNotExist) {
					t.Fatalf("opened with %v, want %v alone", err, row.cause)
				}
				if text := err.Error(); !strings.Contains(text, row.says) || strings.Contains(text, "remove") ||
					strings.Contains(text, "\n") {
					t.Errorf("the error is %q", text)
				}
			})
		}
	}
}

// noMoreFiles keeps the process from opening any file until the test ends.
func noMoreFiles(t *testing.T) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
}

func TestUnreadable_AdviceFitsTheCause(t *testing.T) {
	for cause, says := range map[error]string{
		syscall.EACCES: "root", syscall.EPERM: "root", syscall.EMFILE: "ulimit", syscall.ENFILE: "ulimit",
		syscall.EIO: "disk",
	} {
		err := unreadable("key", &os.PathError{Op: "open", Path: "/tls/ca.key", Err: cause})
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "/tls/ca.key") {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

func TestOpen_HalfAnAuthorityIsRefused(t *testing.T) {
	for _, file := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key"} {
		dir := t.TempDir()
		open(t, dir, names, now)
		path := filepath.Join(dir, file)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, names, now); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), path) {
			t.Errorf("without %s opened with %v, want ErrIncomplete", file, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was created (%v)", file, err)
		}
	}
}

func cut(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data[:len(data)/2], 0o600)
}

// A clock that is wrong at first start must do no harm once it is right, nor to other machines
// whose clock is right already: they accept what was made in 1970 for a year from wallclock.Floor.
func TestOpen_WrongClockAtFirstStart(t *testing.T) {
	for name, wrong := range map[string]time.Time{
		"1970":          time.Unix(1000, 0),
		"ten years on":  now.AddDate(10, 0, 0),
		"the year 2000": time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), names, wrong)
			roots := x509.NewCertPool()
			roots.AddCert(s.CA.Cert)
			right := wallclock.Floor.AddDate(0, 11, 0)
			for _, p := range []Pair{s.APIServer, s.Admin, s.KubeletClient} {
				if _, err := leaf(t, p).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: wrong,
					KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					t.Errorf("%s with the wrong clock: %v", p.CertFile, err)
				}
				if _, err := leaf(t, p).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: right,
					KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					t.Errorf("%s with the right clock: %v", p.CertFile, err)
				}
			}
		})
	}
}

// allPairs are the certificates that a server with a node keeps.
func allPairs(s *Set, node Pair) []Pair {
	return []Pair{s.APIServer, s.KubeletClient, s.FrontProxy, s.Admin, node}
}

func openWithNode(t *testing.T, at time.Time) (*Set, Pair) {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir, names, at)
	node, err := s.NodeServing(filepath.Join(dir, "node"), "n1", []net.IP{net.IPv4(192, 0, 2, 7)}, at)
	if err != nil {
		t.Fatal(err)
	}
	return s, node
}

// A server that runs for years looks at its certificates every ten minutes; here every ten days,
// which is harder.
func TestSet_Renew_YearsWithoutRestart(t *testing.T) {
	s, node := openWithNode(t, now)
	renewals := map[string]int{}
	for at := now; at.Before(now.AddDate(10, 0, 0)); at = at.AddDate(0, 0, 10) {
		renewed, err := s.Renew(names, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range renewed {
			renewals[p.CertFile]++
		}
		for _, p := range allPairs(s, node) {
			if left := leaf(t, p).NotAfter.Sub(at); left < renewBefore {
				t.Fatalf("at %v %s has %v left, want %v at least", at, p.CertFile, left, renewBefore)
			}
		}
	}
	for _, p := range allPairs(s, node) {
		// Each lives for eight months before it is replaced.
		if n := renewals[p.CertFile]; n < 14 || n > 15 {
			t.Errorf("%s was renewed %d times in ten years, want 14 or 15", p.CertFile, n)
		}
	}
}

func TestSet_Renew_ClockIsSet(t *testing.T) {
	for name, row := range map[string]struct {
		from, to time.Time
		renewed  bool
	}{
		"from 1970 to the present":      {time.Unix(1000, 0), wallclock.Floor.AddDate(0, 1, 0), false},
		"from 1970 to years on":         {time.Unix(1000, 0), wallclock.Floor.AddDate(5, 0, 0), true},
		"on by 400 days":                {now, now.AddDate(0, 0, 400), true},
		"back by three years":           {now.AddDate(3, 0, 0), now, true},
		"back by an hour":               {now, now.Add(-time.Hour), false},
		"back to 1970, not believed in": {now, time.Unix(1000, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			s, node := openWithNode(t, row.from)
			renewed, err := s.Renew(names, row.to)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 5, false: 0}[row.renewed]; len(renewed) != want {
				t.Errorf("renewed %v, want %d", renewed, want)
			}
			for _, p := range allPairs(s, node) {
				cert := leaf(t, p)
				if at := base(row.to); at.Before(cert.NotBefore) || !at.Before(cert.NotAfter) {
					t.Errorf("%s is valid from %v to %v, not at %v", p.CertFile, cert.NotBefore, cert.NotAfter, at)
				}
			}
		})
	}
}

func TestSet_Renew_OneThatCannotBeWrittenHoldsUpNoOther(t *testing.T) {
	s, node := openWithNode(t, now)
	// A folder in its place cannot be replaced by a file, not even by root.
	if err := os.Remove(s.APIServer.KeyFile); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.APIServer.KeyFile, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	at := now.AddDate(0, 0, 400)
	renewed, err := s.Renew(names, at)
	if err == nil || len(renewed) != 4 {
		t.Errorf("renewed %d with error %v, want 4 and an error", len(renewed), err)
	}
	if !leaf(t, node).NotAfter.After(at) {
		t.Error("the node's certificate was not renewed")
	}
}

func TestOpen_AuthorityEnded_IsRefusedAndKept(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, names, now)
	before, err := os.ReadFile(first.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	late := first.End().Add(time.Hour)
	if _, err := Open(dir, names, late); !errors.Is(err, ErrEnded) ||
		!strings.Contains(err.Error(), late.Format("2006-01-02")) {
		t.Errorf("opened with %v, want ErrEnded and both times", err)
	}
	if after, err := os.ReadFile(first.CAFile); err != nil || string(after) != string(before) {
		t.Errorf("the authority was replaced (%v)", err)
	}
	// As the documentation says: without the two authorities, new ones are made.
	for _, name := range []string{"ca", "front-proxy-ca"} {
		for _, ext := range []string{".crt", ".key"} {
			if err := os.Remove(filepath.Join(dir, name+ext)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := open(t, dir, names, late)
	for _, p := range []Pair{s.APIServer, s.KubeletClient, s.Admin} {
		if err := leaf(t, p).CheckSignatureFrom(s.CA.Cert); err != nil {
			t.Errorf("%s: %v", p.CertFile, err)
		}
	}
}

func TestSet_WriteKubeconfig(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, names, now)
	file := filepath.Join(dir, "new", "kubeconfig.yaml")
	const gid = 12345
	if err := s.WriteKubeconfig(file, "https://127.0.0.1:6443", Access{Mode: 0o640, GID: gid}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o640 || !ok || owner.Gid != gid {
		t.Errorf("mode %v, owner %+v; want 0640 and group %d", info.Mode(), owner, gid)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:6443" || len(config.CAData) == 0 || len(config.CertData) == 0 ||
		len(config.KeyData) == 0 {
		t.Errorf("the kubeconfig does not stand alone: host %s, %d+%d+%d bytes", config.Host, len(config.CAData),
			len(config.CertData), len(config.KeyData))
	}
}

func TestSet_NodeServing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, names, now)
	pair, err := s.NodeServing(filepath.Join(dir, "node"), "n1", []net.IP{net.IPv4(192, 0, 2, 7)}, now)
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, pair)
	if err := cert.VerifyHostname("192.0.2.7"); err != nil {
		t.Error(err)
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("may be used for %v, want serving alone", cert.ExtKeyUsage)
	}
}

func TestSet_ReplaceAdmin_OnlyWhenItIsAccepted(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Names{}, now)
	if err != nil {
		t.Fatal(err)
	}
	old, err := s.AdminCertificate()
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	if err := s.ReplaceAdmin(now, func(*x509.Certificate) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	if kept, err := s.AdminCertificate(); err != nil || !kept.Equal(old) {
		t.Errorf("the certificate was replaced although the new one was refused: %v", err)
	}
	var accepted *x509.Certificate
	if err := s.ReplaceAdmin(now, func(c *x509.Certificate) error { accepted = c; return nil }); err != nil {
		t.Fatal(err)
	}
	fresh, err := s.AdminCertificate()
	if err != nil || !fresh.Equal(accepted) || fresh.SerialNumber.Cmp(old.SerialNumber) == 0 {
		t.Fatalf("the new certificate is not the one that was accepted: %v", err)
	}
	// The next start keeps it.
	if _, err := Open(dir, Names{}, now); err != nil {
		t.Fatal(err)
	}
	if kept, err := s.AdminCertificate(); err != nil || !kept.Equal(fresh) {
		t.Errorf("after a start: %v", err)
	}
}
