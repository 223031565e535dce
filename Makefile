# The two commands: `make demo` shows a whole recovery on real VMs, `make test` runs every test.
SHELL := /bin/bash
export DRYDOCK_BIN = $(CURDIR)/target/debug/drydock
export RUST_BACKTRACE ?= 0
# Properties are tried on the same values in every run; with another number, on others.
export PROPTEST_RNG_SEED ?= 1

# Switches and network namespaces need root; building does not.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HOME,PATH,DRYDOCK_BIN,DRYDOCK_CACHE,XDG_CACHE_HOME,RUST_BACKTRACE)
ifneq ($(ROOT),)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER = $(ROOT)
endif

.PHONY: demo test build images bootstrap lint unit fuzz test-attacks e2e bench-hgs bench-recovery

demo: build images
	$(ROOT) target/debug/drydock-demo

# The slow end-to-end tests come last: what fails in seconds fails first.
test: lint unit fuzz test-attacks e2e

bootstrap:
	@scripts/bootstrap

build: bootstrap
	cargo build --workspace --locked

images: bootstrap
	@tests/images/build > /dev/null

lint: bootstrap
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features drydock-fuzz/libfuzzer --locked -- -D warnings
	scripts/licences
	scripts/units

unit: build
	cargo test --workspace --locked --exclude drydock-tests

# FUZZ_SECONDS for each target; docs/testing.md says how to go on by hand. Dependencies are those of every other build.
fuzz: bootstrap
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/rustc \
		cargo build --workspace --locked --bin drydock-fuzz --features drydock-fuzz/libfuzzer
	fuzz/run

# Every row of docs/threat-model.md that needs real processes. Ends with `N passed, N failed`.
test-attacks: build images
	@cargo test --quiet --workspace --locked --test attacks

# All other targets of the bench, by their files. Of the whole workspace, so that nothing is built a second time for another
# set of features.
e2e: build images
	cargo test --workspace --locked $(patsubst tests/tests/%.rs,--test %,$(wildcard tests/tests/*.rs)) -- \
		--nocapture --test-threads 1

# What the Host Guardian Service does in a second, beside openssl's private-key operations in the same run.
bench-hgs: bootstrap
	cargo bench --locked --package hgs --bench hgs -- 10 $(CURDIR)/target/bench/hgs.json

# What a recovery costs, beside qemu-img and cp in the same run. A whole one on real VMs is part of it.
bench-recovery: bootstrap images
	cargo build --release --locked --package drydock
	$(ROOT) env DRYDOCK_BIN=$(CURDIR)/target/release/drydock PATH="$$PATH" \
		cargo bench --locked --package drydock-tests --bench recovery -- $(CURDIR)/target/bench/recovery.json
