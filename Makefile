# The two commands are `make demo` and `make test`; both need root. `make help` lists the others.

CARGO ?= cargo

.PHONY: help demo test page limits soak sabotage newest compilers kernels bench lint docs diagrams picture clean
.DEFAULT_GOAL := help

# LOADED: test binaries that run the loaded program, once with each flow table type. OF_ANY_KIND: their files that run
# once only, because they choose the type themselves, keep no flow in a table, or test what surrounds the program
# (attachments, the path of probes, next hops, diagnosis).
LOADED := control e2e walk
OF_ANY_KIND := attach attachments captures decap decap_tc diagnose diagnose_live documents ecmp flow_table_model \
	follow follow_edges following fork handed_over health health_places inline_decap lives loads local losses manners \
	monitor monitor_ends moving_on mtu next_hop orphan outer_fragments pinned pins probed ring_memory rings root_pinned \
	routing scaling sending shared switch tunnel_rules tunnels vlan vrf ways

# The dependencies are those of Cargo.lock, which no build rewrites silently.
LOCK_FITS = $(CARGO) metadata --locked --format-version 1 >/dev/null || \
	{ echo 'Cargo.lock does not fit Cargo.toml (or see above): cargo update --workspace, and commit it' >&2; false; }

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: ## a load balancer, four backends and a client at work (root)
	@scripts/setup demo
	@$(LOCK_FITS)
	$(CARGO) run --locked --release --example demo

test: ## all tests (root)
	@scripts/setup test
	@$(LOCK_FITS)
	KATRAN_FRAMES=1_000_000 $(CARGO) test --locked --workspace --all-features
	KATRAN_FLOW_TABLE=kernel-lru $(CARGO) test --locked --all-features $(addprefix --test ,$(LOADED)) -- \
		$(foreach area,$(OF_ANY_KIND),--skip $(area)::)

# With Debian's browser, which not every distribution has as a package; KATRAN_SCREENSHOTS names a directory for pictures.
page: ## the page of a running balancer in a browser, with 500 VIPs (root; chromium)
	@scripts/setup page
	@$(LOCK_FITS)
	$(CARGO) build --locked --all-features --examples
	$(CARGO) test --locked --all-features --test programs page:: -- --include-ignored

# As docs/limits.md claims them; make test has them in a debug build, with allowances.
limits: ## the limits that are claimed, in a release build, with what was measured (root)
	@scripts/setup test
	@$(LOCK_FITS)
	$(CARGO) test --locked --release --all-features --test limits -- --nocapture

# Built in release mode: 100,000,000 frames take half an hour then, and more than an hour otherwise. KATRAN_SEED chooses them.
soak: FRAMES ?= 100_000_000
soak: ## FRAMES random frames through program and model; 200 kills under traffic, and one after each store (root; five hours)
	@scripts/setup test
	$(CARGO) test --locked --release --all-features --test survival -- --ignored --nocapture --test-threads=1
	$(CARGO) build --locked --release --all-features --examples
	KATRAN_SOAK=1 $(CARGO) test --locked --release --all-features --test programs killed_ -- --nocapture
	KATRAN_FRAMES=$(FRAMES) $(CARGO) test --locked --release --all-features --test fuzz random:: -- --nocapture

sabotage: ## each rule of the walk broken once: does the model find it? (root; half an hour)
	@scripts/setup test
	scripts/sabotage $(ARGS)

# In a copy, whose Cargo.lock may change; run by hand, or by a timer.
newest: ## all tests against the newest compatible dependencies (root)
	@scripts/setup test
	copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
		git archive HEAD | tar -x -C "$$copy" && cd "$$copy" && \
		$(CARGO) update && $(CARGO) test --workspace --all-features

compilers: ## the BPF programs by the oldest and the newest clang, loaded (root; ten minutes)
	@scripts/setup test
	@$(LOCK_FITS)
	scripts/compilers $(ARGS)

kernels: ## what depends on the kernel, under Linux 6.1 and 6.12 in emulated machines (root; an hour)
	@scripts/setup test
	@$(LOCK_FITS)
	scripts/kernels $(ARGS)

# Figures last (and nothing else has an f): it draws what the others have found.
bench: ## all benches (root), and the figures of docs/; ARGS go to each of them
	@scripts/setup test
	$(CARGO) bench --workspace --all-features --no-fail-fast --bench '[!f]*' -- $(ARGS)
	$(CARGO) bench --all-features --bench figures -- $(ARGS)

lint: ## format, clippy and documentation, where a warning is an error
	@scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --package katran --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps --document-private-items

docs: ## the parts of docs/ that come from tables in the sources (a test fails when they are stale)
	@scripts/setup build
	UPDATE_DOCS=1 $(CARGO) test --all-features --lib documentation_is_current

picture: ## docs/img/demo.svg, from a run of the demo (root)
	scripts/demo-svg $(ARGS)

diagrams: ## the diagrams of docs/architecture.md (a test fails if stale)
	@scripts/setup diagrams
	scripts/diagrams

clean: ## what was built
	$(CARGO) clean
