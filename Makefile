# Thin on purpose: each target is one or two cargo calls. CI runs exactly these (.ci/run).
# ARGS goes to the command a target runs: `make run ARGS=--stay`, `make test ARGS=attack_`.
CARGO ?= cargo
ARGS ?=
RELEASE ?=
.DEFAULT_GOAL := help
.PHONY: help run check fmt clippy doc deny layout test interop interop-peers fuzz-smoke chart images release test-released bench bench-count bench-micro

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the flash-sale shop: a mesh of real processes under load (ARGS=--stay keeps it up)
	@$(CARGO) build --workspace --bins --locked
	@"$${CARGO_TARGET_DIR:-target}/debug/outrigger-shop" demo $(ARGS)

test: ## unit, property and scenario tests (the scenarios drive the built binaries); each step of bench-micro once
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked -- $(ARGS)
	$(CARGO) test --workspace --locked --bench micro --bench inject

check: fmt clippy doc deny layout ## formatting, lints, docs, supply rules, layout rules

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

# Built once from the registry when it is not there: about two minutes on two cores.
deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check bans licenses sources

# The whole workspace is named wherever tests run: one crate alone asks other features of its dependencies, and would build
# all of them once more.
layout: ## which room may use which, names, sizes, unsafe
	$(CARGO) test --workspace --locked --test layout

# Debian packages for what is missing (as root; RUNLEVEL keeps init scripts from starting services), the rest by fetch.py.
PEERS = curl:curl h2load:nghttp2-client nghttpd:nghttp2-server nginx:nginx-light chromium:chromium ip:iproute2 openssl:openssl \
  nft:nftables iptables:iptables crun:crun setpriv:util-linux sysctl:procps \
  mariadbd:mariadb-server-core mariadb:mariadb-client-core redis-server:redis-server memcached:memcached
interop-peers:
	@missing=""; for pair in $(PEERS); do \
	  PATH="$$PATH:/usr/sbin" command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then RUNLEVEL=1 apt-get -o Acquire::Retries=3 install -y --no-install-recommends $$missing; fi

interop: interop-peers ## real peers before, behind and beside us: curl, nginx, Envoy, OpenSSL, Chromium, MariaDB ...; real cgroups, namespaces
	$(CARGO) build --workspace --bins --locked
	@echo "fetching peers; the API server of Kubernetes is built once, which takes minutes"
	@python3 tests/tools/fetch.py etcd kube-apiserver gateway-crds chart-schemas helm3 helm4
	OUTRIGGER_ENVOY="$$(python3 tests/tools/fetch.py envoy)" && export OUTRIGGER_ENVOY && \
	  $(CARGO) test --workspace --locked --test interop --test tls --test browser --test cgroup --test veth --test kube --test install --test intercept --test captured --test pods -- --ignored

# The property tests with many more cases than `make test` gives them; bounded.
FUZZ_CASES ?= 10000
fuzz-smoke: ## random input to the parsers, the converter and the policy reader, about a minute
	$(CARGO) test --no-run --locked --workspace --lib
	PROPTEST_CASES=$(FUZZ_CASES) OUTRIGGER_FUZZ_CASES=$(FUZZ_CASES) timeout 900 \
	  $(CARGO) test --locked --workspace --lib -- convert:: detect:: grpc:: http1:: http2:: route:: policy:: model::

chart: ## the Helm chart: lint, render, refuse bad values; strict schemas of Kubernetes 1.31 to 1.37, roles, seccomp profile
	$(CARGO) build --workspace --bins --locked
	OUTRIGGER_HELM3="$$(python3 tests/tools/fetch.py helm3)" && export OUTRIGGER_HELM3 && \
	  OUTRIGGER_HELM4="$$(python3 tests/tools/fetch.py helm4)" && export OUTRIGGER_HELM4 && \
	  OUTRIGGER_CHART_CHECKS="$$(python3 tests/tools/fetch.py chart-checks)" && export OUTRIGGER_CHART_CHECKS && \
	  OUTRIGGER_CHART_SCHEMAS="$$(python3 tests/tools/fetch.py chart-schemas)" && export OUTRIGGER_CHART_SCHEMAS && \
	  $(CARGO) test --workspace --locked --test chart -- --ignored

# Where there is no Docker: buildah, and the cross compiler of the other architecture (as root).
IMAGE_PEERS = buildah:buildah readelf:binutils ip:iproute2 setpriv:util-linux \
  aarch64-linux-gnu-g++:g++-aarch64-linux-gnu
images: ## container images by buildah, x86-64 and arm64: sizes, and ours tried out as root (ARGS="--arch amd64")
	@$(MAKE) --no-print-directory interop-peers PEERS="$(IMAGE_PEERS) $(RELEASE_PEERS)"
	python3 tests/tools/images.py $(ARGS)

# Builds with link-time optimisation: about twenty minutes on two cores, the first time.
RELEASE_PEERS = h2load:nghttp2-client nghttpd:nghttp2-server nginx:nginx-light
release: ## the programs as they are released: the proxy optimised by a profile of a load (RELEASE=--plain: without)
	@$(MAKE) --no-print-directory interop-peers PEERS="$(RELEASE_PEERS)"
	python3 tests/tools/release.py $(RELEASE)

test-released: ## the scenarios of `make test`, through what `make release` left (ARGS=attack_)
	$(CARGO) build --workspace --bins --locked
	@target="$$(realpath "$${CARGO_TARGET_DIR:-target}")" && released="$$target/released/$$(uname -m)-unknown-linux-gnu" && \
	  { test -x "$$released/outrigger-proxy" || { echo "$$released/outrigger-proxy is not there: run \`make release\`"; exit 1; }; } && \
	  OUTRIGGER_BIN_DIR="$$released:$$target/debug" $(CARGO) test --workspace --locked --test scenario -- $(ARGS)

# Not a gate: figures depend on the machine. --install brings Debian's peers when run as root.
bench: ## side by side with HAProxy, nginx, Envoy and bare relays (ARGS="--quick --scene small")
	@$(MAKE) --no-print-directory release RELEASE="--proxy-only $(RELEASE)"
	$(CARGO) build --release --locked -p outrigger-reactor --example relay
	$(CARGO) build --release --locked --manifest-path tests/bench/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target}/bench/build
	python3 tests/bench/bench.py --install $(ARGS)

bench-count: ## what a request takes in user space, counted by callgrind: tells builds apart (ARGS="--scene h2")
	@$(MAKE) --no-print-directory interop-peers PEERS="$(RELEASE_PEERS) haproxy valgrind"
	python3 tests/bench/instructions.py $(ARGS)

# Built as the released programs are: cargo leaves `panic = "abort"` out for benchmarks, which costs up to a third.
bench-micro: ## single steps: route match, pick, limiter, snapshot, heads, admission reviews (ARGS=route)
	RUSTFLAGS="$${RUSTFLAGS:-} -C panic=abort" $(CARGO) bench --locked --target host-tuple \
	  -p outrigger-proxy --bench micro -p outrigger-control --bench inject -- $(ARGS)
