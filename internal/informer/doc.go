// Package informer owns the informers that parts of one process share: when they start and end, and
// what each part sees of them. Shared gives an informer factory one owner; a Gate on top of it
// holds events back until a part is built, hides objects from it, and removes its handlers at its
// end.
//
// It must not import anything else of this repository.
package informer
