# The two commands of README, and their parts. Everything builds into target/, or where CARGO_TARGET_DIR says.
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
KUBECTLS := $(TARGET)/kubectl
IMAGES := $(TARGET)/images

.PHONY: demo test check deps images vm

## The labs, end to end, on a throw-away data directory (root)
demo:
	ci/debian.sh gcc libc6-dev
	cargo run --release -- demo

## Everything CI runs (root): format, lints, tidy, unit to end-to-end tests with real kubectl and containers, the demo
test: deps images check
	KUBECTLS=$(KUBECTLS) HOLDFAST_TEST_IMAGES=$(IMAGES) cargo nextest run --workspace --no-fail-fast -E 'not binary(leftovers)'
	cargo run --quiet -- demo --images $(IMAGES)
	$(MAKE) --no-print-directory vm
	cargo nextest run --package holdfast -E 'binary(leftovers)'

## Seconds: format, lints, tidy
check:
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- --deny warnings
	cargo xtask tidy

## Debian's kernel under QEMU, for what this machine's kernel may lack: all cases, or CASES="quota nfs"
vm: deps images
	cargo build --quiet --package holdfast
	ci/vm/run.sh $(TARGET)/debug/holdfast $(KUBECTLS)/kubectl-1.36 $(IMAGES) $(CASES)

deps:
	ci/deps.sh $(KUBECTLS)

images: $(IMAGES)/done
$(IMAGES)/done: examples/images/build.sh tests/scenarios/make_hfbox.py
	mkdir -p $(IMAGES)
	examples/images/build.sh $(IMAGES)
	python3 tests/scenarios/make_hfbox.py $(IMAGES)/hfbox.tar
	touch $@
