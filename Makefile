# Weir. `make help` lists the targets; what they need beside Rust, `make deps` installs.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: build deps demo test soak accept bench clean help

export WEIR_STARTED := $(shell date +%s)
# End-to-end tests and the demo drive these programs, whatever else is built.
export WEIR_BIN_DIR := $(CURDIR)/target/release
# As root nothing is missing after `make deps`, so a test that is skipped is a failure.
ifeq ($(shell id -u),0)
export WEIR_REQUIRE_ALL ?= 1
endif

step := @.ci/step
e2e := cargo test --workspace --release --locked --test e2e
vrperf := target/perf/vrperf

help: ## lists the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

deps: ## installs missing Debian packages (as root)
	$(step) "dependencies" deploy/debian-deps.sh

build: ## all programs, to target/release
	$(step) "build" cargo build --workspace --bins --release --locked

demo: deps build ## the main job on two nodes, checked (as root)
	$(step) "demo" target/release/demo

test: deps ## formatting, lints, unit, property and end-to-end tests
	$(step) "formatting" cargo fmt --all --check
	$(step) "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
	$(step) "unit and property tests" cargo test --workspace --exclude tests --locked
	$(step) "tidy" cargo test --workspace --locked --test tidy
	$(step) "build" cargo build --workspace --bins --release --locked
	$(step) "end-to-end tests" $(e2e)

soak: export PROPTEST_CASES := 10000
soak: export WEIR_SOAK := 1
soak: deps build ## property tests with 10,000 cases each, end-to-end tests at full size
	$(step) "unit and property tests" cargo test --workspace --exclude tests --release --locked
	$(step) "end-to-end tests" $(e2e)

accept: deps build ## ID=POL-3: the tests named pol_3_*
	$(step) "accept $(ID)" .ci/accept "$(ID)"

bench: deps ## vrperf's figures and those of attaching, one JSON object each, and instructions per packet (as root)
	$(step) "build" cargo build --profile perf --package perf --locked
	$(step) "engine, 1 flow" $(vrperf) engine --flows 1 --json
	$(step) "engine, 1,000 flows" $(vrperf) engine --flows 1000 --json
	$(step) "engine, 10,000 flows" $(vrperf) engine --flows 10000 --json
	$(step) "engine, 100,000 flows" $(vrperf) engine --flows 100000 --json
	$(step) "engine, 1,000,000 flows" $(vrperf) engine --flows 1000000 --json
	$(step) "memory, 1,000,000 flows" $(vrperf) memory --json
	$(step) "engine, no caches" $(vrperf) engine --caches off --json
	$(step) "engine, 10 rules" $(vrperf) engine --acl-rules 10 --json
	$(step) "engine, 10,000 rules" $(vrperf) engine --acl-rules 10000 --json
	$(step) "engine, VXLAN out" $(vrperf) engine --flows 10000 --encap vxlan --json
	$(step) "engine, VXLAN in" $(vrperf) engine --flows 10000 --decap vxlan --json
	$(step) "engine, new flows, stateless" $(vrperf) engine --new-flows --stateless --json
	$(step) "engine, new flows" $(vrperf) engine --new-flows --json
	$(step) "engine, random headers" $(vrperf) engine --attack tse --json
	$(step) "engine, flood of new flows" $(vrperf) engine --attack new-flows --json
	$(step) "engine, flood of SYNs" $(vrperf) engine --attack syn --json
	$(step) "limit of 10 Mbit/s" $(vrperf) meter --rate 10000000 --json
	$(step) "limit of 1 Gbit/s" $(vrperf) meter --rate 1000000000 --json
	$(step) "1,000 tenants, 10,000 networks" $(vrperf) scale --json
	$(step) "veth to veth, 64 bytes" $(vrperf) throughput --topology veth --frame 64 --json
	$(step) "veth to veth, 1,514 bytes" $(vrperf) throughput --topology veth --frame 1514 --json
	$(step) "instructions per packet" perf/instructions.sh
	$(step) "programs" cargo build --workspace --bins --release --locked
	$(step) "attaching containers" target/release/cni-pace

clean: ## removes what was built
	cargo clean
