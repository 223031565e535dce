# `make demo` shows a whole recovery on real VMs. `make check` is for every edit, `make test` runs every test, and
# `make test-full` takes its time over it. docs/testing.md explains.
SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export DRYDOCK_BIN = $(TARGET)/debug/drydock
export RUST_BACKTRACE ?= 0
# Properties are tried on the same values in every run; with another number, on others.
export PROPTEST_RNG_SEED ?= 1

# Bridges and network namespaces need root; building does not.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HOME,PATH,DRYDOCK_BIN,DRYDOCK_CACHE,DRYDOCK_TEST_POSTGRES,XDG_CACHE_HOME,RUST_BACKTRACE,PROPTEST_RNG_SEED)
ifneq ($(ROOT),)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER = $(ROOT)
endif

# nextest runs tests of different programs at the same time. Where it is not installed, cargo runs one program after
# another: the same tests, in more time.
NEXTEST := $(shell cargo nextest --version 2> /dev/null)
# A guest under emulation keeps a core busy: more tests at once would only make each of them slower.
THREADS := $(shell nproc)
# The tests on whole fabrics, in nextest's words.
FABRICS := package(drydock-tests) & kind(test)

.PHONY: demo check test test-full build images bootstrap lint docs compile unit fuzz test-attacks e2e tests \
	bench-hgs bench-recovery

demo: build images
	$(ROOT) $(TARGET)/debug/drydock-demo

check: lint docs unit

# Where the images are not cached they are built while the compiler works: packages are unpacked one after another, and
# that leaves a core idle. The slow tests come last: what fails in seconds fails first.
test: bootstrap
	@tests/images/build > /dev/null & images=$$!; \
		$(MAKE) --no-print-directory lint docs compile fuzz; done=$$?; \
		wait $$images && exit $$done
	@$(MAKE) --no-print-directory tests

# As `make test`, but with every test that is left out there, longer fuzzing, and to the end whatever fails.
test-full: export FUZZ_SECONDS ?= 60
test-full: lint docs fuzz images compile
ifdef NEXTEST
	cargo nextest run --workspace --locked --test-threads $(THREADS) --run-ignored all --no-fail-fast
else
	cargo test --workspace --locked --no-fail-fast -- --include-ignored
endif

bootstrap:
	@scripts/bootstrap

build: bootstrap
	cargo build --workspace --locked

images: bootstrap
	@tests/images/build > /dev/null

lint: bootstrap
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features drydock-fuzz/libfuzzer --locked -- -D warnings
	tests/features
	@for script in $(filter-out scripts/bootstrap,$(wildcard scripts/*)); do \
		[ ! -x $$script ] || { echo $$script; $$script || exit 1; }; \
	done

docs: bootstrap
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	cargo test --workspace --doc --locked

# Everything that tests run, built once: with the features that every other build has (tests/features).
compile: bootstrap
	cargo test --workspace --locked --no-run

unit: bootstrap
ifdef NEXTEST
	cargo nextest run --workspace --locked --test-threads $(THREADS) --filterset 'not ($(FABRICS))'
else
	cargo test --workspace --locked --exclude drydock-tests
endif

# FUZZ_SECONDS for each target; docs/testing.md says how to continue by hand.
fuzz: bootstrap
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/rustc \
		cargo build --workspace --locked --bin drydock-fuzz --features drydock-fuzz/libfuzzer
	fuzz/run

# Every row of docs/threat-model.md that needs real processes. Ends with `N passed, N failed`.
test-attacks: compile images
	@cargo test --quiet --workspace --locked --test attacks

# The other tests on whole fabrics.
e2e: compile images
ifdef NEXTEST
	cargo nextest run --workspace --locked --test-threads $(THREADS) --filterset '$(FABRICS) - binary(attacks)'
else
	cargo test --workspace --locked --test e2e -- --show-output --test-threads $(THREADS)
endif

# Units and fabrics. `make test` has built what they need.
tests:
ifdef NEXTEST
	cargo nextest run --workspace --locked --test-threads $(THREADS)
else
	cargo test --workspace --locked --exclude drydock-tests
	cargo test --workspace --locked --test e2e -- --show-output --test-threads $(THREADS)
	cargo test --quiet --workspace --locked --test attacks
endif

# What the Host Guardian Service does in a second, compared with openssl's private-key operations in the same run.
bench-hgs: bootstrap
	cargo bench --locked --package hgs --bench hgs -- 10 $(CURDIR)/target/bench/hgs.json

# What a recovery costs, compared with qemu-img and cp in the same run. A whole one on real VMs is part of it.
bench-recovery: bootstrap images
	cargo build --release --locked --package drydock
	$(ROOT) env DRYDOCK_BIN=$(TARGET)/release/drydock PATH="$$PATH" \
		cargo bench --locked --package drydock-tests --bench recovery -- $(CURDIR)/target/bench/recovery.json
