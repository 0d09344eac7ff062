# Two commands do all the set-up on a fresh Debian or Ubuntu machine: `make lab` and `make test`.
# Everything a target needs is fetched by the scripts in lab/setup/, which say what they install.

SETUP := lab/setup
export PATH := $(CURDIR)/target/tools/bin:$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab test faults vm cluster cluster-down cluster-test kubernetes image simulate fuzz bench build assets check fmt clippy doc deny drift manifests vendor arm64

lab: ## Bring up a small internet in namespaces, take over four times, print the gaps
	@$(SETUP)/lab.sh demo

test: ## Run every test this machine can run, and tell the rest as not run
	$(SETUP)/packages.sh test
	$(SETUP)/rust.sh
	$(SETUP)/assets.sh kube elector helm
	$(SETUP)/test.sh

faults: ## Let every fault, and WIREVIP_FAULT_PAIRS (200) random pairs, befall real processes
	@$(SETUP)/faults.sh

vm: ## Run tests on kernel WireGuard, in a virtual machine with a Debian kernel
	@$(SETUP)/vm.sh

cluster: ## Bring up a real Kubernetes cluster in namespaces: control plane, three nodes, containers
	@$(SETUP)/cluster.sh up

cluster-down: ## End it; nothing is left on the machine
	@$(SETUP)/cluster.sh down

cluster-test: ## Install the chart on such a cluster, disrupt it, and measure at a client outside
	@$(SETUP)/cluster-test.sh

kubernetes: ## Run what takes a real API server or cluster on three releases of Kubernetes, or on RELEASES="1.35"
	@$(SETUP)/kubernetes.sh $(RELEASES)

simulate: ## Let whole daemons live through a million random histories (HISTORIES=…, SEED=…), in optimised code
	$(SETUP)/rust.sh
	WIREVIP_HISTORIES=$(or $(HISTORIES),1000000) WIREVIP_SEED=$(or $(SEED),1) \
	  cargo test --locked --profile simulate --test simulation never -- --nocapture

fuzz: ## Look for inputs that break what reads the Secret and the API, FOR=600 seconds
	$(SETUP)/rust.sh
	$(SETUP)/fuzz.sh $(or $(FOR),600)

bench: ## Measure the gaps of many takeovers and the idle cost of a pod
	@$(SETUP)/lab.sh bench

build: ## Build the static release binary for this machine
	$(SETUP)/static.sh

arm64: ## Build the static release binary for arm64, and have it read Secrets in an emulator
	$(SETUP)/static.sh aarch64
	$(SETUP)/emulated.sh aarch64

image: ## Write the image into target/image/, an OCI archive, without an engine or a registry
	@$(SETUP)/image.sh

assets: ## Build what only tests need (kube-apiserver, etcd, client-go's elector, helm) from Go modules
	$(SETUP)/assets.sh kube elector helm

check: fmt clippy doc deny drift ## Format, lints, docs, licences, manifests: all that CI checks beside the tests

fmt: ## Fail when the code is not formatted
	$(SETUP)/rust.sh rustfmt
	cargo fmt --all --check

clippy: ## Fail on any lint
	$(SETUP)/rust.sh clippy
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc: ## Fail when the code's documentation does not build cleanly
	$(SETUP)/rust.sh
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

deny: ## Fail on a licence that is not in deny.toml, or on a known vulnerability
	$(SETUP)/deny.sh

drift: ## Fail when manifests/ is not what the chart renders, or vendor/ not what was published and patched
	$(SETUP)/assets.sh helm
	$(SETUP)/manifests.sh --check
	$(SETUP)/vendor.sh --check

manifests: ## Render the chart into manifests/
	$(SETUP)/assets.sh helm
	$(SETUP)/manifests.sh

vendor: ## Make vendor/gotatun from the published crate and vendor/gotatun.patch
	$(SETUP)/vendor.sh

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
