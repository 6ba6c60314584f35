package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: podtool COMMAND ...
  api METHOD PATH       call the API server with the pod's service account, verified by its CA; print the status code and the body
  get URL...            fetch and print each page; an answer other than 200 is a failure
  lookup TYPE NAME      ask DNS for A, AAAA, CNAME, SRV or PTR; print the answers sorted, one a line
  eat MEGABYTES         use that much memory, then wait
  serve ADDRESS         answer HTTP with this pod's name and the client's address, until told to end
  udp ADDRESS           send each datagram back
  dns ADDRESS NAME IP   a name server that knows one name`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "podtool:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 {
		rest := args[1:]
		switch {
		case args[0] == "api" && len(rest) == 2:
			return callAPI(ctx, rest[0], rest[1], os.Stdout)
		case args[0] == "get":
			return get(ctx, rest, os.Stdout)
		case args[0] == "lookup" && len(rest) == 2:
			return lookup(ctx, rest[0], rest[1], os.Stdout)
		case args[0] == "eat" && len(rest) == 1:
			return eat(ctx, rest[0])
		case args[0] == "serve" && len(rest) == 1:
			return serve(ctx, rest[0])
		case args[0] == "udp" && len(rest) == 1:
			return echo(ctx, rest[0])
		case args[0] == "dns" && len(rest) == 3:
			return nameServer(ctx, rest[0], rest[1], rest[2])
		}
	}
	return errors.New(usage)
}

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func callAPI(ctx context.Context, method, path string, out io.Writer) error {
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("read CA: no certificate in it")
	}
	client := &http.Client{Timeout: 20 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	host := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("call API: %w", err)
	}
	defer resp.Body.Close()
	fmt.Fprintln(out, resp.StatusCode)
	_, err = io.Copy(out, resp.Body)
	return err
}

func get(ctx context.Context, urls []string, out io.Writer) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("get %s: %w", url, err)
		}
		_, err = io.Copy(out, resp.Body)
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", url, err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("get %s: %s", url, resp.Status)
		}
	}
	return nil
}

func lookup(ctx context.Context, kind, name string, out io.Writer) error {
	r := &net.Resolver{PreferGo: true}
	var answers []string
	switch kind {
	case "A", "AAAA":
		network := map[string]string{"A": "ip4", "AAAA": "ip6"}[kind]
		ips, err := r.LookupIP(ctx, network, name)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			answers = append(answers, ip.String())
		}
	case "CNAME":
		cname, err := r.LookupCNAME(ctx, name)
		if err != nil {
			return err
		}
		answers = []string{cname}
	case "SRV":
		_, records, err := r.LookupSRV(ctx, "", "", name)
		if err != nil {
			return err
		}
		for _, s := range records {
			answers = append(answers, fmt.Sprintf("%d %s", s.Port, s.Target))
		}
	case "PTR":
		names, err := r.LookupAddr(ctx, name)
		if err != nil {
			return err
		}
		answers = names
	default:
		return fmt.Errorf("unknown type %s", kind)
	}
	slices.Sort(answers)
	for _, a := range answers {
		fmt.Fprintln(out, a)
	}
	return nil
}

func eat(ctx context.Context, megabytes string) error {
	n, err := strconv.Atoi(megabytes)
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	var eaten [][]byte
	for i := range n {
		page := make([]byte, 1<<20)
		for j := 0; j < len(page); j += 4096 {
			page[j] = byte(i)
		}
		eaten = append(eaten, page)
	}
	<-ctx.Done()
	fmt.Println("ate", len(eaten))
	return nil
}

func serve(ctx context.Context, address string) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read host name: %w", err)
	}
	srv := &http.Server{Addr: address, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			client, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s %s\n", host, client)
		})}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func listenPacket(ctx context.Context, address string) (net.PacketConn, func() bool, error) {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	return conn, context.AfterFunc(ctx, func() { _ = conn.Close() }), nil
}

func echo(ctx context.Context, address string) error {
	conn, stop, err := listenPacket(ctx, address)
	if err != nil {
		return err
	}
	defer stop()
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		if _, err := conn.WriteTo(buf[:n], from); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// nameServer answers A questions for one name and refuses to know any other; a few lines of RFC
// 1035 are enough for that.
func nameServer(ctx context.Context, address, name, ip string) error {
	conn, stop, err := listenPacket(ctx, address)
	if err != nil {
		return err
	}
	defer stop()
	known := wireName(name)
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		if reply := answer(buf[:n], known, net.ParseIP(ip).To4()); reply != nil {
			if _, err := conn.WriteTo(reply, from); err != nil {
				return ignoreEnd(ctx, err)
			}
		}
	}
}

// answer makes the reply to one question; nil if it is none.
func answer(query []byte, known string, ip net.IP) []byte {
	const header = 12
	if len(query) < header+5 {
		return nil
	}
	end := header
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	if end+5 > len(query) {
		return nil
	}
	asked := strings.ToLower(string(query[header : end+1]))
	question := query[header : end+5]
	isA := query[end+1] == 0 && query[end+2] == 1

	reply := []byte{query[0], query[1], 0x85, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}
	reply = append(reply, question...)
	switch {
	case asked != known:
		reply[3] |= 3 // no such name
	case isA:
		reply[7] = 1
		reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4)
		reply = append(reply, ip...)
	}
	return reply
}

func wireName(name string) string {
	var b strings.Builder
	for _, label := range strings.Split(strings.Trim(strings.ToLower(name), "."), ".") {
		b.WriteByte(byte(len(label)))
		b.WriteString(label)
	}
	b.WriteByte(0)
	return b.String()
}
