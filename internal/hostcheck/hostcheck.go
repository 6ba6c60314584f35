package hostcheck

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/hostnets"
)

// Level says what follows from a result.
type Level string

// Levels of a result.
const (
	// OK means that all is as it should be.
	OK Level = "ok"
	// Warn means that mote runs, but something will be missing or slow.
	Warn Level = "warn"
	// Fail means that mote does not start.
	Fail Level = "fail"
)

// Result is what one check found.
type Result struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	// Found is what the host has, in a few words.
	Found string `json:"found"`
	// Remedy is what to do about it; empty when Level is OK.
	Remedy string `json:"remedy,omitempty"`
	// Urgent marks a warning that a start repeats each time.
	Urgent bool `json:"-"`
}

// Port is a TCP port mote is about to listen on.
type Port struct {
	// Address is "host:port"; an empty host stands for all addresses.
	Address string
	// Purpose says what for, Setting how another one is chosen.
	Purpose, Setting string
}

// Options say what the host is going to be used for.
type Options struct {
	// DataDir is where mote will keep its files; it need not exist.
	DataDir string
	// Existing says that mote has run on DataDir before. What stops a first start, because it would
	// come to nothing, only warns a later one: its data is there, and it may run with less.
	Existing bool
	// Node says whether pods shall run here. Without, only what a control plane needs is looked at.
	Node bool
	// IPv6 says that pods shall have addresses of that family.
	IPv6 bool
	// Cluster has the cluster's ranges; zero while they are not known, as before a node joins.
	Cluster clusterconfig.Config
	// Own is what the node makes of the host's networks itself.
	Own hostnets.Own
	// NodeIPs are the addresses the node was given; none if it finds its own.
	NodeIPs []net.IP
	// ResolvConf is the file that shall name the host's resolvers; empty means /etc/resolv.conf.
	ResolvConf string
	// Ports are the ports to be listened on.
	Ports []Port
}

// Host is what the checks look at; tests put another one in its place.
type Host interface {
	// ReadFile reads a file of /proc, /sys or /etc.
	ReadFile(path string) ([]byte, error)
	// Exists reports whether a path is there; an error leaves that open.
	Exists(path string) (bool, error)
	// Writable reports whether a file of /proc/sys can be opened for writing.
	Writable(path string) error
	// UID is the effective user, Capabilities the effective set as bits.
	UID() int
	Capabilities() (uint64, error)
	// KernelRelease is what uname says.
	KernelRelease() (string, error)
	// TryDir makes and removes a file in the nearest folder above dir that exists; TryOverlay
	// mounts and unmounts an overlay there.
	TryDir(dir string) error
	TryOverlay(dir string) error
	// TryCopies makes there what files of images are made of: owners, modes, links, pipes. TryLocks
	// locks a file there in both ways that parts of mote do.
	TryCopies(dir string) error
	TryLocks(dir string) error
	// FileSystem names the kind of file system dir is or will be on.
	FileSystem(dir string) string
	// Free returns the free bytes and inodes of dir's file system.
	Free(dir string) (bytes, inodes uint64, err error)
	// TryLinks makes one network device of each kind in a network namespace that is thrown away,
	// and returns the errors by kind.
	TryLinks(kinds ...string) map[string]error
	// TryNFTables and TryIPTables apply a rule of the kinds mote uses in a network namespace that
	// is thrown away.
	TryNFTables() error
	TryIPTables() error
	// TryModule reports whether a kernel module could be loaded, and loads nothing. Of these four,
	// an error for which lacks is false leaves that open.
	TryModule(name string) error
	// TryListen opens and closes a TCP port; PortOwner names who has it, or "".
	TryListen(address string) error
	PortOwner(address string) string
	// TryInotify makes and gives back that many inotify instances, with a watch each.
	TryInotify(instances int) error
	// Networks are the addresses and routes of the machine, but for own ones.
	Networks(own hostnets.Own) ([]hostnets.Use, error)
	// InotifyInUse is how many inotify instances this user's processes have.
	InotifyInUse() (int, error)
	// Now is the clock.
	Now() time.Time
}

// check looks at one thing. A check that does not apply returns no results.
type check func(h Host, o Options) []Result

// Run looks at everything and returns the results in the order a person would want to repair them
// in. Without root's rights that is all it returns.
func Run(h Host, o Options) []Result {
	if h.UID() != 0 {
		// The others would fail for this reason, not for one of the host's.
		return checkRoot(h, o)
	}
	checks := []check{
		checkRoot, checkCapabilities, checkKernel, checkDataDir, checkLocks, checkPorts,
	}
	if o.Node {
		checks = append(checks, checkOverlay, checkCgroups, checkLinks, checkPacketFilter, checkBridgeFilter,
			checkForwarding, checkIPv6, checkConntrack, checkNetworks, checkNodeIPs, checkResolvers,
			checkKmsg, checkSeccomp, checkPropagation, checkInotify, checkSwap)
	}
	checks = append(checks, checkMemory, checkSpace, checkClock, checkEntropy)
	// Some wait for a tool or the kernel; a server's start waits for all of them.
	found := make([][]Result, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { found[i] = c(h, o) })
	}
	all.Wait()
	return slices.Concat(found...)
}

// ErrHost means that the host lacks something mote cannot do without.
var ErrHost = errors.New("host is missing something")

// Faults returns an error for each failed result, one line with its remedy, or nil.
func Faults(results []Result) error {
	var errs []error
	for _, r := range results {
		if r.Level == Fail {
			errs = append(errs, &Fault{r})
		}
	}
	return errors.Join(errs...)
}

// Fault is a failed result as an error.
type Fault struct{ Result Result }

func (f *Fault) Error() string {
	return fmt.Sprintf("%s: %s: %s", f.Result.Name, f.Result.Found, f.Result.Remedy)
}

// Is makes every fault an ErrHost.
func (*Fault) Is(target error) bool { return target == ErrHost }

func ok(name, format string, args ...any) []Result {
	return []Result{{Name: name, Level: OK, Found: fmt.Sprintf(format, args...)}}
}

func warn(name, found, remedy string) []Result {
	return []Result{{
		Name:   name,
		Level:  Warn,
		Found:  found,
		Remedy: remedy,
	}}
}

func fail(name, found, remedy string) []Result {
	return []Result{{
		Name:   name,
		Level:  Fail,
		Found:  found,
		Remedy: remedy,
	}}
}
