// Package apiserver owns how the Kubernetes API server is composed and served in this process: its
// options, its storage on one in-process etcd client, its in-memory clients and its one HTTPS
// listener.
//
// It must not import agent, server/controllers or server/scheduler.
package apiserver
