// Package nfttool owns running the nft tool: replacing a whole table in one step, and telling whether it is still as it was
// left. It knows nothing of what the rules are for, and must not import anything else of netproxy.
package nfttool
