// Package wallclock owns noticing that the machine's clock was set: by hand, by the network after a
// boot without a battery, or by waking from sleep.
//
// It must not import anything else of this repository.
package wallclock
