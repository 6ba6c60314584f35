package retry

// Failures decides which errors of a repeated attempt are worth a log line: the first, and each one
// that says something else than the one before. The zero value has seen none. It is for one
// goroutine.
type Failures struct{ reported string }

// News reports whether err says something that was not reported last. Errors are compared by their
// text, as that is what the reader of the log sees.
func (f *Failures) News(err error) bool {
	text := err.Error()
	if text == f.reported {
		return false
	}
	f.reported = text
	return true
}

// Recovered reports whether a failure was reported since the last success, so that its end is worth
// a line too, and starts over.
func (f *Failures) Recovered() bool {
	was := f.reported != ""
	f.reported = ""
	return was
}
