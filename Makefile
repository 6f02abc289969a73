# Every target does its own set-up: Python 3.11, a Rust toolchain, make, a C compiler and cmake are all it needs.
#
# Two virtual environments. `.venv` holds what runs and ships; `.venv-test` holds the quick build and the tools that
# judge it. Both get the package as a wheel, never a link into the tree, so that neither build can leak into the other.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
TEST_VENV := .venv-test
WHEELS := target/wheels
LOGS := target/logs
PYTEST_ARGS ?=
BENCH_ARGS ?= --peers capsule-relay,direct,haproxy --rounds 3
SCALE_ARGS ?=
UDP_ARGS ?=
PROFILE_ARGS ?=
FUZZ_SECONDS ?= 60

NATIVE_SOURCES := Cargo.toml Cargo.lock $(shell find native -name fuzz -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
PYTHON_SOURCES := pyproject.toml $(shell find relay -name '*.py' -o -name '*.pyi' -o -name py.typed)
SOURCES := $(NATIVE_SOURCES) $(PYTHON_SOURCES)
PYTHON_TREES := $(wildcard relay tests benches examples spec .ci)

# The working directory must not shadow the installed package with the tree, which has no native module.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call install,VENV,KIND,MATURIN ARGUMENTS,ENVIRONMENT): build the wheel, put it into the venv.
define install
rm -rf $(WHEELS)/$(2)
$(4) $(1)/bin/maturin build $(3) --locked --compatibility linux --interpreter $(1)/bin/python --out $(WHEELS)/$(2)
$(1)/bin/python -m pip install --quiet --no-deps --force-reinstall $(WHEELS)/$(2)/*.whl
endef

# $(call lock,EXTRAS,NAME,FURTHER INPUT): pin and hash one set of requirements.
define lock
$(TEST_VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' --no-annotate $(LOCK_ARGS) \
	pyproject.toml $(3) $(addprefix --extra ,$(1)) --output-file requirements/$(2).txt
endef

##@ Use

.PHONY: run
run: tools ## build what is missing (quickly) and serve on loopback, with curl lines to paste
	@$(MAKE) -q $(VENV)/.shipped 2>/dev/null || $(MAKE) $(VENV)/.quick
	@exec $(VENV)/bin/relay serve --dev

.PHONY: build
build: tools $(VENV)/.shipped ## the shipped profile (fat LTO) as .venv/bin/relay
	@$(VENV)/bin/relay --version

.PHONY: build-trained
build-trained: tools $(VENV)/.trained ## as build, guided by a profile of its own loads (a quarter of an hour more)
	@$(VENV)/bin/relay --version

##@ Judge

.PHONY: test
test: tools $(TEST_VENV)/.installed ## cargo test and pytest on the quick build; both summaries close the output
	@mkdir -p $(LOGS); status=0; \
	cargo test --locked --no-fail-fast -p capsule-core -p relay-engine 2>&1 | tee $(LOGS)/cargo-test.log || status=1; \
	$(TEST_VENV)/bin/pytest $(PYTEST_ARGS) 2>&1 | tee $(LOGS)/pytest.log || status=1; \
	printf '\ncargo test:\n'; grep -E '^(test result:|error(\[|:))' $(LOGS)/cargo-test.log || true; \
	printf 'pytest:\n'; tail -n 1 $(LOGS)/pytest.log; \
	exit $$status

.PHONY: lint
lint: tools $(TEST_VENV)/.lint $(TEST_VENV)/.installed ## formatting, types, stubs, lints, room borders, licences
	$(TEST_VENV)/bin/ruff format --check $(PYTHON_TREES)
	$(TEST_VENV)/bin/ruff check $(PYTHON_TREES)
	$(TEST_VENV)/bin/mypy --strict relay
	$(TEST_VENV)/bin/stubtest --concise relay._native
	$(TEST_VENV)/bin/lint-imports --no-logo --no-cache
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(TEST_VENV)/bin/python .ci/licences.py

.PHONY: conformance
conformance: ## each MUST and SHOULD with the line that obeys it and the test that shows it
	@$(PYTHON) spec/conformance.py

.PHONY: docs
docs: tools $(TEST_VENV)/.installed ## the Rust API pages, and every documented command run as written
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps -p capsule-core -p relay-engine
	$(TEST_VENV)/bin/pytest tests/docs

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_SECONDS (needs a nightly toolchain and cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo 'make fuzz needs cargo-fuzz: cargo install cargo-fuzz'; exit 2; }
	@cd native/fuzz; for target in $$(cargo +nightly fuzz list); do \
	  cargo +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done

##@ Measure

.PHONY: bench
bench: tools $(VENV)/.shipped $(VENV)/.bench ## relay, HAProxy, direct TCP and the floors side by side, then datagrams and the codec
	PYTHONPATH=benches $(VENV)/bin/python benches/bench.py $(BENCH_ARGS)
	@$(MAKE) bench-udp
	@$(MAKE) bench-codec

.PHONY: bench-peers
bench-peers: tools $(VENV)/.shipped ## the same with every peer that can be had, five rounds (long)
	PYTHONPATH=benches $(VENV)/bin/python benches/bench.py

.PHONY: bench-udp
bench-udp: tools $(VENV)/.shipped ## CPU per datagram and loss, next to masque-go, Envoy and h2o, with their marks
	PYTHONPATH=benches $(VENV)/bin/python benches/udp.py $(UDP_ARGS)

.PHONY: bench-scale
bench-scale: tools $(VENV)/.shipped ## opening, idle tunnels, many tunnels, two workers, small frames, with their marks
	PYTHONPATH=benches $(VENV)/bin/python benches/scale.py $(SCALE_ARGS)

.PHONY: bench-wire
bench-wire: tools $(VENV)/.shipped ## over a veth pair at MTU 1500: offloads, delay, loss (needs root)
	PYTHONPATH=benches $(VENV)/bin/python benches/wire.py

.PHONY: bench-compare
bench-compare: $(VENV)/.dependencies ## what changed beyond noise between two results (A=… B=…; else the last two)
	@PYTHONPATH=benches $(VENV)/bin/python benches/compare.py $(A) $(B)

.PHONY: bench-codec
bench-codec: tools $(VENV)/.shipped $(VENV)/.bench ## the codec from Python: Rust, Cython, pure Python, aioquic
	$(VENV)/bin/pytest benches/test_codec.py -p no:cacheprovider --override-ini addopts= \
	  --benchmark-group-by=group --benchmark-columns=min,median,rounds --benchmark-sort=min

.PHONY: profile
profile: tools $(VENV)/.shipped ## flame graphs and shares of CPU for each transport, form and direction (perf, root)
	PYTHONPATH=benches $(VENV)/bin/python benches/flames.py $(PROFILE_ARGS)

.PHONY: soak
soak: tools $(VENV)/.shipped $(TEST_VENV)/.installed ## gigabytes: equal hashes and steady memory in each cell, and the long tests
	PYTHONPATH=benches $(VENV)/bin/python benches/bench.py --verify
	$(TEST_VENV)/bin/pytest -m gigabyte

##@ House

.PHONY: lock
lock: LOCK_ARGS ?=
lock: $(TEST_VENV)/.lint ## pin and hash the Python requirements anew (LOCK_ARGS=--upgrade for newer ones)
	$(call lock,uvloop,run,requirements/build.in)
	$(call lock,uvloop test,test,-c requirements/run.txt)
	$(call lock,lint,lint,requirements/lint.in -c requirements/run.txt -c requirements/test.txt)
	$(call lock,bench,bench,-c requirements/run.txt -c requirements/test.txt)

.PHONY: format
format: $(TEST_VENV)/.lint ## rewrite what the formatters would complain about
	$(TEST_VENV)/bin/ruff format $(PYTHON_TREES)
	$(TEST_VENV)/bin/ruff check --fix $(PYTHON_TREES)
	cargo fmt --all

.PHONY: clean
clean: ## remove both environments and all build output
	rm -rf $(VENV) $(TEST_VENV) target

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: tools
tools:
	@for tool in cargo cc cmake; do command -v $$tool >/dev/null || { \
	  echo "$$tool not found: this needs a Rust toolchain (https://rustup.rs), a C compiler and cmake"; exit 2; }; done
	@test -n '$(PYTHON)' && '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer not found: install it, or name one with PYTHON=/path/to/python3.11'; exit 2; }

# The environments. A stamp is newer than all that went into what it stands for.

$(VENV)/.dependencies: requirements/run.txt
	test -x $(VENV)/bin/python || '$(PYTHON)' -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	@touch $@

$(TEST_VENV)/.dependencies: requirements/run.txt requirements/test.txt
	test -x $(TEST_VENV)/bin/python || '$(PYTHON)' -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/run.txt -r requirements/test.txt
	@touch $@

$(TEST_VENV)/.lint: requirements/lint.txt $(TEST_VENV)/.dependencies
	$(TEST_VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	@touch $@

$(VENV)/.bench: requirements/bench.txt benches/baselines/compiled.pyx $(VENV)/.dependencies
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	$(VENV)/bin/python benches/baselines/build.py
	@touch $@

# `.venv` holds one build at a time: each kind takes the other's stamp away.
$(VENV)/.shipped: $(VENV)/.dependencies $(SOURCES)
	@rm -f $(VENV)/.quick
	$(call install,$(VENV),shipped,--release)
	@touch $@

# What was trained counts as shipped. The target's name keeps the flags out of build scripts.
PROFILE := $(CURDIR)/target/training/relay.profdata
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

$(PROFILE): $(VENV)/.shipped benches/train.py
	PYTHONPATH=benches $(VENV)/bin/python benches/train.py $@

$(VENV)/.trained: $(PROFILE)
	$(call install,$(VENV),shipped,--release --target $(HOST),RUSTFLAGS="$${RUSTFLAGS:-} -Cprofile-use=$(PROFILE)")
	@touch $(VENV)/.shipped $(PROFILE) $@

$(VENV)/.quick: $(VENV)/.dependencies $(SOURCES)
	@rm -f $(VENV)/.shipped
	$(call install,$(VENV),quick,--profile dev)
	@touch $@

$(TEST_VENV)/.installed: $(TEST_VENV)/.dependencies $(SOURCES)
	$(call install,$(TEST_VENV),test,--profile dev)
	@touch $@
