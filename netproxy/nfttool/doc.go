// Package nfttool owns running the nft tool: it classifies its failures, replaces a whole table
// atomically, and detects changes to it by others. It does not know what the rules are for.
//
// It must not import anything else of this repository.
package nfttool
