package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	upstreamopenapi "k8s.io/apiserver/pkg/util/openapi"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"

	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server/openapi"
)

// changesAPI are the flags of kube-apiserver that change what the API's documents say; the embedded
// ones are those of the defaults.
var changesAPI = []string{"feature-gates", "runtime-config", "emulated-version", "emulation-forward-compatible",
	"runtime-config-emulation-forward-compatible"}

// buildsDocuments tells whether this server builds its OpenAPI documents itself, as upstream does,
// instead of serving the embedded ones.
func (c Config) buildsDocuments() bool {
	return slices.ContainsFunc(c.ExtraArgs, func(arg string) bool {
		name, _ := upstreamflag.Split(arg)
		return slices.Contains(changesAPI, name)
	})
}

// openAPI sets up the documents of g and returns the configuration that authentication adds its
// security definitions to.
func (c Config) openAPI(g *genericapiserver.Config) *openapicommon.Config {
	definitions := upstreamopenapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	namer := openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensionsapiserver.Scheme,
		aggregatorscheme.Scheme)
	// Server-side apply needs the definitions while the APIs are installed.
	g.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	g.OpenAPIV3Config.Info.Title = "Kubernetes"
	if !c.buildsDocuments() {
		g.SkipOpenAPIInstallation = true
		return &openapicommon.Config{}
	}
	g.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	g.OpenAPIConfig.Info.Title = "Kubernetes"
	return g.OpenAPIConfig
}

// serveDocuments puts the embedded documents in front of the last server of the chain, behind
// authentication and authorization.
func (c Config) serveDocuments(g *genericapiserver.Config) error {
	client, err := clientset.NewForConfig(g.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("make client of custom resource definitions: %w", err)
	}
	list := func(ctx context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error) {
		// Version 0 is answered from the watch cache.
		found, err := client.ApiextensionsV1().CustomResourceDefinitions().List(ctx,
			metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, fmt.Errorf("list custom resource definitions: %w", err)
		}
		crds := make([]*apiextensionsv1.CustomResourceDefinition, len(found.Items))
		for i := range found.Items {
			crds[i] = &found.Items[i]
		}
		return crds, nil
	}
	build := g.BuildHandlerChainFunc
	g.BuildHandlerChainFunc = func(api http.Handler, config *genericapiserver.Config) http.Handler {
		return build(openapi.NewHandler(api, list), config)
	}
	// Health checks list the hook of this name, and monitoring may ask for it: it stands for the
	// documents, whoever makes them.
	return g.AddPostStartHook("apiservice-openapi-controller", func(genericapiserver.PostStartHookContext) error {
		return openapi.Check()
	})
}

// dropDefinitions lets go of what only the installation of the APIs needed.
func dropDefinitions(c *openapicommon.OpenAPIV3Config) {
	c.Definitions, c.GetDefinitions = nil, nil
}
