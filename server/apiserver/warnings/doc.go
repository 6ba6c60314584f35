// Package warnings owns how an answer's warnings get into its header: upstream adds them to the
// header map from goroutines that a request leaves behind when it ends early, and two goroutines in
// one map end the process.
//
// It must not import anything else of this repository.
package warnings
