# Thin on purpose: each target is one or two cargo calls. CI runs exactly these (.ci/run).
# ARGS goes to the command a target runs: `make run ARGS=--stay`, `make test ARGS=attack_`.
CARGO ?= cargo
ARGS ?=
.DEFAULT_GOAL := help
.PHONY: help run check fmt clippy doc deny layout test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the flash-sale shop: a mesh of real processes under load (ARGS=--stay keeps it up)
	@$(CARGO) build --workspace --bins --locked
	@$(CARGO) run --quiet --locked -p outrigger-tests --bin outrigger-shop -- demo $(ARGS)

test: ## unit, property and scenario tests (the scenarios drive the built binaries)
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked -- $(ARGS)

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

layout: ## which room may use which, names, sizes, unsafe
	$(CARGO) test --locked -p outrigger-tests --test layout
