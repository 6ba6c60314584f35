package main

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func main() {
	ctrl.SetLogger(klog.NewKlogr())
	if err := run(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, addGreetings} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("set up scheme: %w", err)
		}
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find API server: %w", err)
	}
	namespace := os.Getenv("NAMESPACE")
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme,
		// Its role is of one namespace, so it must not ask about others.
		Cache:                   cache.Options{DefaultNamespaces: map[string]cache.Config{namespace: {}}},
		HealthProbeBindAddress:  ":8081",
		Metrics:                 server.Options{BindAddress: "0"},
		LeaderElection:          true,
		LeaderElectionID:        "greeting-operator",
		LeaderElectionNamespace: namespace,
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("add health check: %w", err)
	}
	err = ctrl.NewControllerManagedBy(mgr).Named("greeting").For(&greeting{}).Owns(&corev1.ConfigMap{}).
		Complete(&reconciler{client: mgr.GetClient(), scheme: scheme})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	return mgr.Start(ctx)
}

type reconciler struct {
	client client.Client
	scheme *runtime.Scheme
}

// Reconcile makes the ConfigMap say what the greeting wants, then says so in the greeting's status.
func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var g greeting
	if err := r.client.Get(ctx, req.NamespacedName, &g); err != nil {
		// One that is gone needs nothing: its ConfigMap is collected with it.
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	text := "Hello, " + g.Spec.Name
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: g.Name}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.client, cm, func() error {
		cm.Data = map[string]string{"text": text}
		return controllerutil.SetControllerReference(&g, cm, r.scheme)
	})
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("write config map: %w", err)
	}
	if g.Status.Text == text && g.Status.ObservedGeneration == g.Generation {
		return ctrl.Result{}, nil
	}
	g.Status = greetingStatus{Text: text, ObservedGeneration: g.Generation}
	if err := r.client.Status().Update(ctx, &g); err != nil {
		return ctrl.Result{}, fmt.Errorf("write status: %w", err)
	}
	return ctrl.Result{}, nil
}
