#!/bin/sh
# Builds the images of examples/ and of the tests into the folder given, with nothing but Go and Debian's busybox-static.
set -eu
cd "$(dirname "$0")/.."
out=${1:-bin/images}
go=${GO:-go}
tags=${TAGS:-osusergo,netgo}
mkdir -p "$out" build/images
out=$(cd "$out" && pwd)
stage=$(pwd)/build/images

# build MODULE-DIR PACKAGE OUTPUT [LDFLAGS]: without cgo, so that the file needs nothing beside it.
build() {
	(cd "$1" && CGO_ENABLED=0 "$go" build -trimpath -tags "$tags" -ldflags "-s -w ${4:-}" -o "$stage/$3" "$2")
}

busybox=$(command -v busybox)
if ! "$busybox" ls /proc/self/exe >/dev/null || ldd "$busybox" >/dev/null 2>&1; then
	echo "example-images: $busybox is not static; install busybox-static" >&2
	exit 1
fi

echo "example-images: building programs"
build . ./test/ociarchive ociarchive
build examples/shop . shop-1.0 "-X main.version=1.0"
build examples/shop . shop-2.0 "-X main.version=2.0"
build test/e2e ./podtool podtool
build test/e2e ./operator operator

pack() {
	archive=$1
	shift
	"$stage/ociarchive" -o "$out/$archive" "$@"
	echo "example-images: $out/$archive"
}

passwd='root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n'

pack busybox.tar -name docker.io/library/busybox:1.36 -name docker.io/library/busybox:latest \
	-busybox "$busybox" -text "/etc/passwd=$passwd" -text '/etc/group=root:x:0:\n' -dir /tmp:1777 -dir /root:700 \
	-cmd sh -env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for v in 1.0 2.0; do
	pack "shop-$v.tar" -name "example.com/shop:$v" -text "/etc/passwd=$passwd" -dir /tmp:1777 \
		-layer -file "$stage/shop-$v:/shop" -entrypoint /shop -expose 8080/tcp -user 1000
done
pack podtool.tar -name example.com/podtool:1 -busybox "$busybox" -text "/etc/passwd=$passwd" -dir /tmp:1777 \
	-layer -file "$stage/podtool:/bin/podtool" -entrypoint /bin/podtool -env PATH=/usr/sbin:/usr/bin:/sbin:/bin
pack operator.tar -name example.com/operator:1 -text "/etc/passwd=$passwd" -file "$stage/operator:/operator" -entrypoint /operator -user 65534
