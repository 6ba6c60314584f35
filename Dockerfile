# Builds mote from source and packs it with the two tools a node needs from the
# host. The container is the node: run it with
#
#   docker run --privileged --cgroupns=host --tmpfs /run \
#     -v mote:/var/lib/mote -v /lib/modules:/lib/modules:ro -p 6443:6443 mote
#
# It is privileged because a node mounts, makes network namespaces, and writes cgroups and
# packet filter rules. /var/lib/mote should be a volume: overlayfs does not work on
# a container's own file system, and images would be copied for each container.
FROM golang:1.26-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
	gcc git libc6-dev libseccomp-dev make pkg-config zstd && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make build

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
	ca-certificates iptables nftables && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/bin/mote /usr/local/bin/mote
VOLUME /var/lib/mote
EXPOSE 6443 10250
ENTRYPOINT ["/usr/local/bin/mote"]
CMD ["server"]
