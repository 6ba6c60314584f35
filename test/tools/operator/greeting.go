package main

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var groupVersion = schema.GroupVersion{Group: "e2e.example.com", Version: "v1"}

// greeting is the custom resource that testdata/greetings.yaml defines.
type greeting struct {
	v1.TypeMeta   `json:",inline"`
	v1.ObjectMeta `json:"metadata,omitempty"`

	Spec   greetingSpec   `json:"spec"`
	Status greetingStatus `json:"status,omitempty"`
}

type greetingSpec struct {
	Name string `json:"name"`
}

type greetingStatus struct {
	Text               string `json:"text,omitempty"`
	ObservedGeneration int64  `json:"observedGeneration,omitempty"`
}

type greetingList struct {
	v1.TypeMeta `json:",inline"`
	v1.ListMeta `json:"metadata,omitempty"`
	Items       []greeting `json:"items"`
}

func (g *greeting) DeepCopyObject() runtime.Object {
	c := *g
	c.ObjectMeta = *g.ObjectMeta.DeepCopy()
	return &c
}

func (l *greetingList) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = make([]greeting, len(l.Items))
	for i := range l.Items {
		c.Items[i] = *l.Items[i].DeepCopyObject().(*greeting)
	}
	return &c
}

func addGreetings(s *runtime.Scheme) error {
	s.AddKnownTypeWithName(groupVersion.WithKind("Greeting"), &greeting{})
	s.AddKnownTypeWithName(groupVersion.WithKind("GreetingList"), &greetingList{})
	v1.AddToGroupVersion(s, groupVersion)
	return nil
}
