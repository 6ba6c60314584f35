package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carries etcd's names where etcd has the same thing, so that its dashboards work.
type metrics struct {
	commitSeconds, checkpointSeconds, compactionSeconds, batchSize prometheus.Histogram
	requestSeconds                                                 *prometheus.HistogramVec
	events, slowWatchers, leaseGranted, leaseRevoked               prometheus.Counter
	watchers                                                       prometheus.Gauge
}

func newMetrics() *metrics {
	hist := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	fast := prometheus.ExponentialBuckets(0.0001, 2, 15)
	return &metrics{
		commitSeconds: hist("etcd_disk_backend_commit_duration_seconds", "Time a commit took until it was on disk.",
			fast),
		checkpointSeconds: hist("mote_store_checkpoint_duration_seconds",
			"Time the writer spent copying its log into the file.", fast),
		compactionSeconds: hist("mote_store_compaction_duration_seconds", "Time from a compaction to its end.",
			prometheus.DefBuckets),
		batchSize: hist("mote_store_commit_proposals", "Writes in one commit.",
			prometheus.ExponentialBuckets(1, 2, 11)),
		requestSeconds: prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Name: "etcd_server_request_duration_seconds",
				Help: "Time of a request in the store.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)},
			[]string{"type", "success"}),
		events: count("etcd_debugging_mvcc_events_total", "Changes handed to watchers."),
		slowWatchers: count("mote_store_slow_watchers_total",
			"Times a watcher fell behind and was sent to read the file."),
		leaseGranted: count("etcd_debugging_lease_granted_total", "Leases granted."),
		leaseRevoked: count("etcd_debugging_lease_revoked_total", "Leases revoked or expired."),
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "etcd_debugging_mvcc_watcher_total",
			Help: "Watches there are."}),
	}
}

func (m *metrics) observe(op string, d time.Duration, err error) {
	ok := "true"
	if err != nil {
		ok = "false"
	}
	m.requestSeconds.WithLabelValues(op, ok).Observe(d.Seconds())
}

// Describe and Collect make the store a prometheus.Collector, to be registered by whoever serves
// metrics.
func (s *Store) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

// Collect sends the store's metrics.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	m := s.metrics
	for _, c := range []prometheus.Collector{m.commitSeconds, m.checkpointSeconds, m.compactionSeconds, m.batchSize,
		m.requestSeconds,
		m.events, m.slowWatchers, m.leaseGranted, m.leaseRevoked, m.watchers} {
		c.Collect(ch)
	}
	gauge := func(name, help string, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, v)
	}
	if size, err := s.fileBytes(); err == nil {
		gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the file and its log.", float64(size))
	}
	gauge("etcd_debugging_mvcc_current_revision", "Newest revision.", float64(s.revs.published.Load()))
	gauge("etcd_debugging_mvcc_compact_revision", "Revision compacted to.", float64(s.revs.compacted.Load()))
	gauge("etcd_server_has_leader", "Always 1: the store leads itself.", 1)
}
