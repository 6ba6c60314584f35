# Build, test and run mote. `make help` lists the targets; CONTRIBUTING.md explains them.
# What a target does beyond one command line lives in scripts/, a file per verb.

GO      ?= go
BIN     := $(CURDIR)/bin
MOTE    := $(BIN)/mote
IMAGES  := $(BIN)/images
REPORTS := $(BIN)/reports

# kustomize (through kubectl) imports Go's plugin package, which exports every symbol and switches
# dead-code removal off; the other tags keep libc's resolver and unused snapshotters out.
TAGS := kustomize_disable_go_plugin_support,osusergo,netgo,sqlite_omit_load_extension,no_btrfs,no_devmapper,no_zfs
GOBUILD := scripts/compile build -trimpath -tags $(TAGS)

K8S_VERSION  := $(shell sed -n 's|^\tk8s.io/kubernetes v|v|p' go.mod)
K8S_MAJOR    := $(word 1,$(subst ., ,$(K8S_VERSION:v%=%)))
K8S_MINOR    := $(word 2,$(subst ., ,$(K8S_VERSION:v%=%)))
MOTE_VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GIT_COMMIT   := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
TREE_STATE   := $(if $(shell git status --porcelain 2>/dev/null),dirty,clean)
# The commit's date, not the clock's: two builds of one commit are the same bytes.
BUILD_DATE   := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)

version_flags = -X $(1).gitVersion=$(K8S_VERSION) -X $(1).gitMajor=$(K8S_MAJOR) -X $(1).gitMinor=$(K8S_MINOR) \
	-X $(1).gitCommit=$(GIT_COMMIT) -X $(1).gitTreeState=$(TREE_STATE) -X $(1).buildDate=$(BUILD_DATE)
VERSION_FLAGS := $(call version_flags,k8s.io/component-base/version) $(call version_flags,k8s.io/client-go/pkg/version) \
	-X github.com/mote-dev/mote/cmd.Version=$(MOTE_VERSION)
LDFLAGS := -s -w -linkmode external -extldflags -static $(VERSION_FLAGS)

# Each module builds with the versions in its own go.mod; go.work is for editors.
export GOWORK := off
export GO TAGS VERSION_FLAGS

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.PHONY: build
build: bundle ## build bin/mote, one static executable
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o $(MOTE) .
	@ls -l $(MOTE) | awk '{printf "%s: %.1f MB\n", $$NF, $$5/1e6}'

.PHONY: bundle
bundle: ## build what bin/mote embeds: runc, its shim, CNI plugins, pause, the kubectl and ctr helper
	scripts/bundle

.PHONY: deps
deps: ## install what a build and the tests need, where apt-get exists (root)
	scripts/deps

.PHONY: run
run: deps build ## install build needs, build, and start a server in the foreground (root)
	$(MOTE) server

.PHONY: test
test: ## everything CI runs: vet, unit tests, build, end-to-end tests, a sample of the conformance tests
	scripts/test

.PHONY: vet
vet: ## go vet over every module of the repository
	scripts/vet

.PHONY: lint
lint: ## errcheck, errorlint, staticcheck and misspell, pinned in test/tools/lint, over every module
	scripts/lint

.PHONY: quick
quick: vet lint ## before each commit: vet, lint and the unit tests that do not link Kubernetes; under a minute with warm caches
	scripts/unit quick

.PHONY: unit
unit: ## unit tests; the light packages also under the race detector; PART=plain or race for one half
	scripts/unit $(PART)

.PHONY: example-images
example-images: ## build the images of examples/ and of the tests, offline, into bin/images
	scripts/example-images $(IMAGES)

.PHONY: e2e
e2e: build example-images ## end-to-end tests against bin/mote (root); RUN=regexp picks some
	scripts/e2e

.PHONY: clock
clock: build example-images ## bin/mote with clocks that are wrong, are set, or went on for years (root); RUN=regexp picks some
	scripts/clock

.PHONY: e2e-hosts
e2e-hosts: build example-images ## end-to-end tests on several hosts within this one: joining, outages (root); LONG=1 for longer ones
	scripts/e2e-hosts

.PHONY: e2e-vm
e2e-vm: build example-images ## bin/mote as a service of an emulated machine with systemd and cgroups of version 2; ten minutes (root)
	scripts/e2e-vm

.PHONY: container
container: ## build the Dockerfile with buildah, also without a registry, and start a node in the image; minutes (root)
	scripts/container

.PHONY: conformance
conformance: build ## Kubernetes' conformance tests against bin/mote (root); NODES=2, FOCUS=regexp picks some, FOR=10m stops in time
	scripts/conformance

.PHONY: conformance-images
conformance-images: ## build the conformance suite and the images it names, offline
	scripts/conformance build

.PHONY: conformance-table
conformance-table: ## write test/suites/conformance/RESULTS.md from the results kept
	scripts/conformance table

.PHONY: bench
bench: export PEERS := 1
bench: bench-idle bench-store ## measure mote and upstream's programs in the same runs, tables with ratios (root)

.PHONY: bench-store
bench-store: ## measure the store in process and over gRPC beside etcd and kine, a table with ratios
	scripts/compile run -C test/suites/store -exec 'env -u GOGC' -trimpath -tags $(TAGS) ./bench

.PHONY: bench-idle
bench-idle: build ## measure an idle bin/mote: size, start, memory, CPU, writes; PEERS=1 beside upstream's programs, PODS=20 with pods (root)
	scripts/bench-idle

.PHONY: bench-join
bench-join: build ## measure what 200 hollow nodes cost one server: join, memory, CPU, writes (root); NODES=50 makes them fewer
	scripts/bench-join

.PHONY: bench-load
bench-load: build ## measure the memory that a load of 16 clients leaves behind, twice; eight minutes (root)
	scripts/bench-load

.PHONY: clean
clean: ## remove build output, and what an interrupted test run left behind
	scripts/clean
