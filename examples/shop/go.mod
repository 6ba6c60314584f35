module github.com/mote-dev/mote/examples/shop

go 1.26.6
