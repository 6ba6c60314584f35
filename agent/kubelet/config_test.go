package kubelet

import "testing"

func TestAddress(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		want string
	}{
		{"defaults", nil, "127.0.0.1:10250"},
		{"another port", []string{"max-pods=10", "--port=10260"}, "127.0.0.1:10260"},
		{"one address", []string{"address=192.0.2.1"}, "192.0.2.1:10250"},
		{"one IPv6 address", []string{"address=2001:db8::1", "port=1"}, "[2001:db8::1]:1"},
		{"every address", []string{"address=::"}, "127.0.0.1:10250"},
		{"the last one counts", []string{"address=192.0.2.1", "address=0.0.0.0"}, "127.0.0.1:10250"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := Address(row.args); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}
