package sharedkeys

import (
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-dev/mote/store/storetest"
)

const secret = "abcdef.0123456789abcdef"

func server(kv clientv3.KV) Config {
	return Config{
		KV:       kv,
		Secret:   secret,
		Dir:      "/data/tls",
		Settings: map[string]string{"service-cidr": "10.43.0.0/16"},
	}
}

// maker completes a server's own keys with ones that nobody else has.
func maker(mark string) func(map[string][]byte) (map[string][]byte, error) {
	return func(own map[string][]byte) (map[string][]byte, error) {
		all := map[string][]byte{"ca.crt": []byte("ca of " + mark), "ca.key": []byte("key of " + mark)}
		maps.Copy(all, own)
		return all, nil
	}
}

func agree(t *testing.T, c Config, own map[string][]byte, mark string) map[string][]byte {
	t.Helper()
	keys, err := Agree(t.Context(), c, own, maker(mark))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestAgree_LaterServers_TakeTheFirstOnes(t *testing.T) {
	kv := storetest.Client(t)
	first := agree(t, server(kv), nil, "first")
	if string(first["ca.crt"]) != "ca of first" {
		t.Fatalf("the first has %q", first)
	}
	for name, own := range map[string]map[string][]byte{
		"empty": nil, "all of them": first, "cut off while writing": {"ca.key": first["ca.key"]},
	} {
		if keys := agree(t, server(kv), own, "second"); !maps.EqualFunc(keys, first,
			func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Errorf("%s: %q", name, keys)
		}
	}
	kept, err := kv.Get(t.Context(), "/mote", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range kept.Kvs {
		for _, plain := range []string{"of first", secret, "ca.key", "Y2Egb2YgZmlyc3Q"} {
			if strings.Contains(string(e.Value), plain) {
				t.Errorf("%s shows %q", e.Key, plain)
			}
		}
	}
}

func TestAgree_ServerWithKeys_IsFollowed(t *testing.T) {
	kv := storetest.Client(t)
	own := map[string][]byte{"ca.crt": []byte("old"), "ca.key": []byte("old key")}
	agree(t, server(kv), own, "unused")
	if keys := agree(t, server(kv), nil, "second"); string(keys["ca.key"]) != "old key" {
		t.Errorf("the second has %q", keys)
	}
}

func TestAgree_ManyAtOnce_HaveTheSame(t *testing.T) {
	kv := storetest.Client(t)
	const servers = 5
	got := make([]map[string][]byte, servers)
	errs := make([]error, servers)
	var made sync.WaitGroup
	made.Add(servers)
	var all sync.WaitGroup
	for i := range servers {
		all.Go(func() {
			got[i], errs[i] = Agree(t.Context(), server(kv), nil,
				func(own map[string][]byte) (map[string][]byte, error) {
					// All have found nothing before the first writes.
					made.Done()
					made.Wait()
					return maker(strconv.Itoa(i))(own)
				})
		})
	}
	all.Wait()
	for i := range servers {
		if errs[i] != nil || len(got[i]) != 2 || string(got[i]["ca.crt"]) != string(got[0]["ca.crt"]) {
			t.Errorf("server %d has %q, %v; server 0 %q", i, got[i], errs[i], got[0])
		}
	}
}

func TestAgree_Refused(t *testing.T) {
	for _, row := range []struct {
		name   string
		before func(t *testing.T, kv clientv3.KV)
		change func(c *Config)
		own    map[string][]byte
		want   error
		words  []string
	}{
		{
			name:   "another token",
			change: func(c *Config) { c.Secret = "abcdef.fedcba9876543210" },
			want:   ErrToken,
			words:  []string{"--token"},
		},
		{name: "a changed value", before: flip, want: ErrToken},
		{
			name:  "another cluster's keys",
			own:   map[string][]byte{"ca.crt": []byte("mine"), "ca.key": []byte("mine")},
			want:  ErrOtherKeys,
			words: []string{"ca.crt", "/data/tls", "--data-dir"},
		},
		{
			name:  "half of another cluster's keys",
			own:   map[string][]byte{"ca.key": []byte("mine")},
			want:  ErrOtherKeys,
			words: []string{"ca.key"},
		},
		{
			name:   "another range",
			change: func(c *Config) { c.Settings = map[string]string{"service-cidr": "10.99.0.0/16"} },
			want:   ErrOtherSettings,
			words:  []string{"service-cidr", "10.99.0.0/16", "10.43.0.0/16"},
		},
		{name: "keys deleted", before: func(t *testing.T, kv clientv3.KV) {
			for _, err := range []error{put(t, kv, objects+"pods/default/a", "x"), remove(t, kv, keysKey)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}, want: ErrNoKeys},
	} {
		t.Run(row.name, func(t *testing.T) {
			kv := storetest.Client(t)
			agree(t, server(kv), nil, "first")
			if row.before != nil {
				row.before(t, kv)
			}
			c := server(kv)
			if row.change != nil {
				row.change(&c)
			}
			_, err := Agree(t.Context(), c, row.own, maker("second"))
			if !errors.Is(err, row.want) {
				t.Fatalf("%v, want %v", err, row.want)
			}
			for _, w := range row.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			for _, bad := range []string{"\n", "cipher", "abcdef.", "mine"} {
				if strings.Contains(err.Error(), bad) {
					t.Errorf("%q has %q in it", err, bad)
				}
			}
		})
	}
}

// A setting that came with a later version counts from the first server on that has it, and older
// ones, which do not know it, go on.
func TestAgree_LaterSetting_IsTheFirstToHaveIt(t *testing.T) {
	kv := storetest.Client(t)
	agree(t, server(kv), nil, "older")
	with := func(backend string) Config {
		c := server(kv)
		c.Settings = map[string]string{"service-cidr": "10.43.0.0/16", "network-backend": backend}
		return c
	}
	agree(t, with("host-gw"), nil, "upgraded")
	agree(t, server(kv), nil, "older")
	if _, err := Agree(t.Context(), with("vxlan"), nil, maker("another")); !errors.Is(err, ErrOtherSettings) ||
		!strings.Contains(err.Error(), "network-backend is vxlan here and host-gw there") {
		t.Errorf("another value: %v", err)
	}
	other := with("host-gw")
	other.Settings["service-cidr"] = "10.99.0.0/16"
	if _, err := Agree(t.Context(), other, nil, maker("another")); !errors.Is(err, ErrOtherSettings) ||
		strings.Contains(err.Error(), "network-backend") {
		t.Errorf("another range: %v", err)
	}
}

// An etcd with a cluster of before there were shared keys, or with keys deleted, takes them from
// the server that has them.
func TestAgree_ObjectsWithoutKeys_FromTheServerThatHasThem(t *testing.T) {
	kv := storetest.Client(t)
	if err := put(t, kv, objects+"pods/default/a", "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := Agree(t.Context(), server(kv), nil, maker("new")); !errors.Is(err, ErrNoKeys) {
		t.Errorf("a server without keys: %v", err)
	}
	own := map[string][]byte{"ca.crt": []byte("old"), "ca.key": []byte("old key")}
	if keys := agree(t, server(kv), own, "new"); string(keys["ca.key"]) != "old key" {
		t.Errorf("%q", keys)
	}
}

func put(t *testing.T, kv clientv3.KV, key, value string) error {
	_, err := kv.Put(t.Context(), key, value)
	return err
}

func remove(t *testing.T, kv clientv3.KV, key string) error {
	_, err := kv.Delete(t.Context(), key)
	return err
}

// flip changes one bit of the sealed data.
func flip(t *testing.T, kv clientv3.KV) {
	t.Helper()
	have, err := kv.Get(t.Context(), keysKey)
	if err != nil {
		t.Fatal(err)
	}
	var s sealed
	if err := json.Unmarshal(have.Kvs[0].Value, &s); err != nil {
		t.Fatal(err)
	}
	s.Data[3] ^= 1
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t, kv, keysKey, string(data)); err != nil {
		t.Fatal(err)
	}
}

func TestUnseal_FormsItDoesNotKnow(t *testing.T) {
	data, err := seal(secret, map[string][]byte{"a": []byte("b")})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*sealed){
		"a later form":    func(s *sealed) { s.Version = 2 },
		"endless rounds":  func(s *sealed) { s.Rounds = 1 << 40 },
		"no rounds":       func(s *sealed) { s.Rounds = 0 },
		"a cut nonce":     func(s *sealed) { s.Nonce = s.Nonce[1:] },
		"data cut to nil": func(s *sealed) { s.Data = nil },
	} {
		var s sealed
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		change(&s)
		changed, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if files, err := unseal(secret, changed); err == nil {
			t.Errorf("%s: opened to %q", name, files)
		}
	}
	if _, err := unseal(secret, []byte("{")); err == nil {
		t.Error("half a value was opened")
	}
}
