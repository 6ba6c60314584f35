package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// ledger is the shop's state: one line an order, appended to a file and on disk before it is
// acknowledged.
type ledger struct {
	mu   sync.Mutex // guards file: one order is written whole before the next
	file *os.File
}

func openLedger(dir string) (*ledger, error) {
	f, err := os.OpenFile(filepath.Join(dir, "orders"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return &ledger{file: f}, nil
}

func (l *ledger) close() {
	if err := l.file.Close(); err != nil {
		fmt.Println("close ledger:", err)
	}
}

func (l *ledger) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", l.list)
	mux.HandleFunc("POST /orders", l.append)
	mux.HandleFunc("GET /probe/ready", func(http.ResponseWriter, *http.Request) {})
	return logged(mux)
}

func (l *ledger) list(w http.ResponseWriter, _ *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := io.Copy(w, l.file); err != nil {
		fmt.Println("answer cut short:", err)
	}
}

func (l *ledger) append(w http.ResponseWriter, r *http.Request) {
	order, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	line := strings.ReplaceAll(strings.TrimSpace(string(order)), "\n", " ")
	if line == "" {
		http.Error(w, "empty order", http.StatusBadRequest)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := fmt.Fprintln(l.file, line); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := l.file.Sync(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// seed is the Job: it puts a first order into an empty ledger, and may run again without doubling
// it.
func seed(ctx context.Context, url string) error {
	orders, err := fetchOrders(ctx, url)
	if err != nil {
		return err
	}
	if len(orders) > 0 {
		fmt.Println("ledger has orders already")
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/orders", strings.NewReader("first order"))
	if err != nil {
		return fmt.Errorf("make order: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("send order: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("send order: ledger answered %s", resp.Status)
	}
	fmt.Println("seeded")
	return nil
}

// report is the CronJob: it prints how many orders there are.
func report(ctx context.Context, url string, out io.Writer) error {
	orders, err := fetchOrders(ctx, url)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d orders\n", len(orders))
	return err
}

func fetchOrders(ctx context.Context, url string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/orders", nil)
	if err != nil {
		return nil, fmt.Errorf("ask for orders: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for orders: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for orders: ledger answered %s", resp.Status)
	}
	var orders []string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		orders = append(orders, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	return orders, nil
}
