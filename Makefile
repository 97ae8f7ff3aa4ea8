# One door. `make` alone says what is behind it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# rustup puts cargo here; a shell that was open before does not know it yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)

CARGO := cargo
# Words for the program behind `demo` or `bench`: make demo ARGS="--memory 4G --cpus 4"
ARGS ?=

# The guests and the fuzz targets are workspaces of their own, so cargo does not reach them from
# here.
APART := $(wildcard guest-images/*/Cargo.toml) tests/fuzz/Cargo.toml

.PHONY: help
help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what the build needs and is missing (quick if nothing is)
	@tools/setup.sh

.PHONY: build
build: setup ## Build the godwit binary: target/release/godwit
	$(CARGO) build --release --locked

.PHONY: demo
demo: build ## Launch a guest, move it while it runs, show what happened
	target/release/godwit demo $(ARGS)

.PHONY: fmt
fmt: ## Format all sources
	$(CARGO) fmt --all
	for apart in $(APART); do $(CARGO) fmt --manifest-path $$apart; done

.PHONY: check
check: setup ## Everything that needs no guest: format, lints, house rules
	$(CARGO) fmt --all --check
	for apart in $(APART); do $(CARGO) fmt --manifest-path $$apart --check; done
	$(CARGO) xtask tidy
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

.PHONY: test
test: check loom ## check, then the unit tests and the tests with real guests
	$(CARGO) test --workspace --locked --no-fail-fast

.PHONY: loom
loom: setup ## The model's threads in many orders, which a checker chooses (in `make test`)
	$(CARGO) test --locked -p godwit-uffd --lib --features shuttle interleavings

.PHONY: miri
miri: setup ## The safe parts of uffd under Miri, where there is a nightly compiler
	tools/nightly.sh miri

# Time of the fuzz targets together.
SECONDS ?= 60

.PHONY: fuzz
fuzz: setup ## Fuzz decoders, the model and a destination, with a nightly compiler: SECONDS=N
	tools/nightly.sh fuzz $(SECONDS)

.PHONY: conformance
conformance: setup ## Every rule of userfaultfd, on the running kernel and on our model
	$(CARGO) run --locked -p godwit-uffd-testing --bin conformance -- $(ARGS)

# How many operations `differential` does, and its first case.
OPS ?= 200000
SEED ?= 1

.PHONY: differential
differential: setup ## Random operations on the running kernel and on our model: OPS=N SEED=N
	$(CARGO) run --locked -p godwit-uffd-testing --bin differential -- $(OPS) $(SEED)

# How many seeds `sim` runs; SEED is the first.
SEEDS ?= 20000

.PHONY: sim
sim: ## The engine over a virtual network, clock and disk, one seed a run: SEEDS=N SEED=N VERBOSE=1
	SEEDS=$(SEEDS) SEED=$(SEED) $(CARGO) run --locked -p godwit-sim

.PHONY: linux-test
linux-test: build ## Stock Debian guests with disks, moved on emulated SVM: ARGS="postcopy@6.12"
	tests/linux/run.sh $(ARGS)

.PHONY: uffd-bench
uffd-bench: setup ## What each call costs on the kernel and on our model: ARGS=COPY/memfd
	$(CARGO) bench --locked -p godwit-uffd --bench operations -- $(ARGS)

.PHONY: bench
bench: setup ## Measure beside the floor and QEMU, then the engine: ARGS="engine --only gate"
	$(CARGO) build --release --locked
	$(CARGO) run --release --locked -p godwit-bench -- $(ARGS)
