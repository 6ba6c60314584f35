package dns

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// watchSettings follows the ConfigMap until ctx ends. An invalid one is reported and changes
// nothing.
func (s *Server) watchSettings(ctx context.Context) error {
	if s.cfg.Client == nil {
		s.settingsKnown.Store(true)
		s.reportOutside()
		return nil
	}
	factory := informers.NewSharedInformerFactoryWithOptions(s.cfg.Client, 0,
		informers.WithNamespace(SettingsNamespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, SettingsName).String()
		}))
	set := func(obj any) {
		// The fake API server of tests does not select by field.
		if m, ok := obj.(*corev1.ConfigMap); ok && m.Name == SettingsName {
			s.setSettings(ctx, m)
		}
	}
	handled, err := factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, obj any) { set(obj) },
		DeleteFunc: func(any) {
			s.replaceSettings(settings{})
			s.log.Info("DNS settings removed")
		},
	})
	if err != nil {
		return fmt.Errorf("watch DNS settings: %w", err)
	}
	factory.Start(ctx.Done())
	// Before that, the settings may still name resolvers.
	if cache.WaitForCacheSync(ctx.Done(), handled.HasSynced) {
		s.settingsKnown.Store(true)
		s.reportOutside()
	}
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

func (s *Server) setSettings(ctx context.Context, m *corev1.ConfigMap) {
	parsed, err := parseSettings(m.Data, s.zone.origin, s.listen)
	if err != nil {
		s.log.Warn("invalid DNS settings; the previous ones stay in effect",
			zap.String("configmap", SettingsNamespace+"/"+SettingsName), zap.Error(err))
		s.reportInvalid(ctx, m, err)
		return
	}
	s.replaceSettings(parsed)
	s.log.Info("DNS settings applied", zap.Int("upstreams", len(parsed.upstreams)),
		zap.Int("stub_domains", len(parsed.stubs)), zap.Int("hosts", len(parsed.hosts)))
}

func (s *Server) replaceSettings(n settings) {
	s.settings.Store(&n)
	s.forward.reset()
	s.reportOutside()
}

// reportInvalid writes an Event about an invalid ConfigMap. Its name contains the version of the
// ConfigMap and the node, so that the API server refuses a second one.
func (s *Server) reportInvalid(ctx context.Context, m *corev1.ConfigMap, cause error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now := metav1.Now()
	_, err := s.cfg.Client.CoreV1().Events(SettingsNamespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: SettingsNamespace,
			Name: fmt.Sprintf("%s.%s.%s", SettingsName, m.ResourceVersion, s.cfg.NodeName)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion:      "v1",
			Kind:            "ConfigMap",
			Namespace:       m.Namespace,
			Name:            m.Name,
			UID:             m.UID,
			ResourceVersion: m.ResourceVersion,
		},
		Reason:         "InvalidDNSSettings",
		Message:        "the previous settings stay in effect: " + cause.Error(),
		Type:           corev1.EventTypeWarning,
		Source:         corev1.EventSource{Component: "mote-dns", Host: s.cfg.NodeName},
		FirstTimestamp: now,
		LastTimestamp:  now,
		Count:          1,
	}, metav1.CreateOptions{})
	if err != nil {
		s.log.Debug("event about DNS settings not written", zap.Error(err))
	}
}
