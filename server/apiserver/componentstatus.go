package apiserver

import (
	"context"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/probe"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
)

const componentStatuses = "componentstatuses"

// component is a part of this process as upstream's storage of component statuses asks for it.
type component func() error

var _ componentstatus.Server = component(nil)

// DoServerCheck implements componentstatus.Server.
func (c component) DoServerCheck() (probe.Result, string, error) {
	if err := c(); err != nil {
		return probe.Failure, "", err
	}
	return probe.Success, "ok", nil
}

// serveComponentStatuses answers reads of component statuses from this process. Upstream's own
// storage connects to the ports of a controller manager and a scheduler, which do not exist here.
// Everything before it stays: discovery, authorization, audit.
func (c Config) serveComponentStatuses(g *genericapiserver.Config) {
	storage := componentstatus.NewStorage(func() map[string]componentstatus.Server {
		servers := map[string]componentstatus.Server{
			"etcd-0": component(func() error { return c.checkStore(context.Background()) }),
		}
		for name, check := range c.Components {
			servers[name] = component(check)
		}
		return servers
	})
	kind := corev1.SchemeGroupVersion.WithKind("ComponentStatus")
	scope := &handlers.RequestScope{
		Namer: handlers.ContextBasedNaming{
			Namer:         runtime.Namer(meta.NewAccessor()),
			ClusterScoped: true,
		},
		Serializer:       legacyscheme.Codecs,
		ParameterCodec:   legacyscheme.ParameterCodec,
		Creater:          legacyscheme.Scheme,
		Convertor:        legacyscheme.Scheme,
		Defaulter:        legacyscheme.Scheme,
		Typer:            legacyscheme.Scheme,
		UnsafeConvertor:  runtime.UnsafeObjectConvertor(legacyscheme.Scheme),
		TableConvertor:   storage,
		Resource:         corev1.SchemeGroupVersion.WithResource(componentStatuses),
		Kind:             kind,
		HubGroupVersion:  schema.GroupVersion{Group: kind.Group, Version: runtime.APIVersionInternal},
		MetaGroupVersion: metav1.SchemeGroupVersion,
	}
	serving := map[string]http.Handler{
		"list": handlers.ListResource(storage, nil, scope, false, time.Duration(g.MinRequestTimeout)*time.Second),
		"get":  handlers.GetResource(storage, scope),
	}
	build := g.BuildHandlerChainFunc
	g.BuildHandlerChainFunc = func(api http.Handler, config *genericapiserver.Config) http.Handler {
		return build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			info, found := request.RequestInfoFrom(r.Context())
			ours := found && info.IsResourceRequest && info.APIGroup == "" && info.Resource == componentStatuses &&
				info.Subresource == ""
			if !ours || serving[info.Verb] == nil {
				api.ServeHTTP(w, r)
				return
			}
			warning.AddWarning(r.Context(), "", "v1 ComponentStatus is deprecated in v1.19+")
			serving[info.Verb].ServeHTTP(w, r)
		}), config)
	}
}
