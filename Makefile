# The main commands are `make demo` and `make test`; both need root. `make help` lists the others.

CARGO ?= cargo

.PHONY: help demo test page limits soak sabotage newest compilers kernels bench lint docs diagrams picture clean
.DEFAULT_GOAL := help

# LOADED: test binaries that run the loaded program, once with each flow table type. OF_ANY_KIND:
# those of their files that run only once, because they choose the type themselves, keep no flow in
# a table, or test what surrounds the program (attachments, the path of probes, next hops,
# diagnosis).
LOADED := control e2e walk
OF_ANY_KIND := attach attachments captures decap decap_tc diagnose diagnose_live documents ecmp flow_table_model \
	follow follow_edges following fork handed_over health health_places inline_decap lives loads local losses manners \
	monitor monitor_ends moving_on mtu next_hop orphan outer_fragments pinned pins probed ring_memory rings root_pinned \
	routing scaling sending shared switch tunnel_rules tunnels vlan vrf ways

# Dependencies are those of Cargo.lock, which no build may rewrite silently.
LOCK_FITS = $(CARGO) metadata --locked --format-version 1 >/dev/null || \
	{ echo 'Cargo.lock does not fit Cargo.toml (or see above): cargo update --workspace, and commit it' >&2; false; }

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: ## run a load balancer with four backends and a client (root)
	@scripts/setup demo
	@$(LOCK_FITS)
	$(CARGO) run --locked --release --example demo

test: ## all tests (root)
	@scripts/setup test
	@$(LOCK_FITS)
	KATRAN_FRAMES=1_000_000 $(CARGO) test --locked --workspace --all-features
	KATRAN_FLOW_TABLE=kernel-lru $(CARGO) test --locked --all-features $(addprefix --test ,$(LOADED)) -- \
		$(foreach area,$(OF_ANY_KIND),--skip $(area)::)

# Needs Debian's browser, which not every distribution packages; KATRAN_SCREENSHOTS names a
# directory for screenshots.
page: ## test the web page in a browser, with 500 VIPs (root; chromium)
	@scripts/setup page
	@$(LOCK_FITS)
	$(CARGO) build --locked --all-features --examples
	$(CARGO) test --locked --all-features --test programs page:: -- --include-ignored

# The limits in docs/limits.md; `make test` also checks them in a debug build, with allowances.
limits: ## test the limits in docs/limits.md in a release build; prints the figures (root)
	@scripts/setup test
	@$(LOCK_FITS)
	$(CARGO) test --locked --release --all-features --test limits -- --nocapture

# In release mode 100,000,000 frames take half an hour, otherwise more than an hour. KATRAN_SEED
# chooses them.
soak: FRAMES ?= 100_000_000
soak: ## random frames (FRAMES), and kills under traffic and after each store (root; five hours)
	@scripts/setup test
	$(CARGO) test --locked --release --all-features --test survival -- --ignored --nocapture --test-threads=1
	$(CARGO) build --locked --release --all-features --examples
	KATRAN_SOAK=1 $(CARGO) test --locked --release --all-features --test programs killed_ -- --nocapture
	KATRAN_FRAMES=$(FRAMES) $(CARGO) test --locked --release --all-features --test fuzz random:: -- --nocapture

sabotage: ## break each rule of the walk: does a test notice? (root; half an hour)
	@scripts/setup test
	scripts/sabotage $(ARGS)

# In a copy, whose Cargo.lock may change; run by hand or by a timer.
newest: ## all tests with the newest compatible dependencies (root)
	@scripts/setup test
	copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
		git archive HEAD | tar -x -C "$$copy" && cd "$$copy" && \
		$(CARGO) update && $(CARGO) test --workspace --all-features

compilers: ## test the BPF programs from the oldest and newest clang (root; ten minutes)
	@scripts/setup test
	@$(LOCK_FITS)
	scripts/compilers $(ARGS)

kernels: ## test on Linux 6.1 and 6.12, in emulated machines (root; an hour)
	@scripts/setup test
	@$(LOCK_FITS)
	scripts/kernels $(ARGS)

# Figures last (no other bench begins with f): it draws the others' results.
bench: ## all benches, and the figures of docs/; ARGS go to each bench (root)
	@scripts/setup test
	$(CARGO) bench --workspace --all-features --no-fail-fast --bench '[!f]*' -- $(ARGS)
	$(CARGO) bench --all-features --bench figures -- $(ARGS)

lint: ## rustfmt, clippy and rustdoc; a warning is an error
	@scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --package katran --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps --document-private-items

docs: ## update the tables in docs/ that come from the sources
	@scripts/setup build
	UPDATE_DOCS=1 $(CARGO) test --all-features --lib documentation_is_current

picture: ## draw docs/img/demo.svg from a run of the demo (root)
	scripts/demo-svg $(ARGS)

diagrams: ## draw the diagrams of docs/architecture.md
	@scripts/setup diagrams
	scripts/diagrams

clean: ## remove everything built
	$(CARGO) clean
