// Package wallclock notices that the machine's clock was set: by hand, by the
// network after a start without a battery, or by sleep.
//
// It must not import anything else of mote: server and agent both use it.
package wallclock
