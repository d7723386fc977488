# Set-up, building and running. `make` lists the targets; boot/launcher does the work.

CARGO ?= cargo
VARIABLES := PROG ARGS FILES SMP MEM CPU TIMEOUT ICOUNT APPEND QEMU_ARGS BUSYBOX KERNEL
export $(VARIABLES)
SETUP := @sh boot/setup.sh
LAUNCHER := $(CARGO) run --quiet --package launcher --

# Make exits with 0 or 2 only. Where make can load a function of ours, the launcher takes make's place, so that its exit
# status is the one that the caller sees.
ifneq ($(filter run exec debug,$(MAKECMDGOALS)),)
ifneq ($(filter load,$(.FEATURES)),)
ifeq ($(findstring n,$(firstword -$(MAKEFLAGS))),)
BECOME := $(shell so=target/make/become.so; mkdir -p target/make && { [ $$so -nt boot/become.c ] || \
	{ cc -shared -fPIC -O1 -o $$so.$$$$ boot/become.c 2>/dev/null && mv $$so.$$$$ $$so; }; } && echo $$so)
-load $(BECOME)
endif
endif
endif
launch = $(if $(BECOME),$(become $1,$(VARIABLES)))@$1

.PHONY: help setup run exec debug test check bench bench-linux docs
help:
	@echo 'make run     a shell in the guest           [SMP=n] [MEM=size] [CPU=model] [FILES="host:guest ..."]'
	@echo 'make exec    PROG=path [ARGS="..."] [FILES="host:guest ..."] [SMP=n] [MEM=size] [CPU=model]'
	@echo '             [TIMEOUT=s] [ICOUNT=1] [APPEND="..."] [QEMU_ARGS="..."] [BUSYBOX=path] [KERNEL=path]'
	@echo 'make debug   as run (or exec, with PROG), waiting for gdb'
	@echo 'make test    every test                     make bench   the benchmark, into target/bench.tsv'
	@echo 'make check   format and lints                make setup   what is missing on this machine'
	@echo 'make bench-linux   what Linux needs for the rows of disks, for make bench to compare'
	@echo 'make docs    API documents and the book, into target/doc and target/book'

setup:
	$(SETUP)

run: setup
	$(call launch,$(LAUNCHER) run --make-variables)

exec: setup
	$(call launch,$(LAUNCHER) exec --make-variables)

debug: setup
	$(call launch,$(LAUNCHER) debug --make-variables)

test: setup
	$(CARGO) test

bench: setup
	@$(CARGO) run --quiet --release --package tests --bin bench

bench-linux: setup
	@$(CARGO) run --quiet --release --package tests --bin bench -- linux

check: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --package guest --all-targets -- -D warnings
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --package kernel --package loader --target x86_64-unknown-none -- -D warnings
	$(CARGO) clippy --quiet --package test-kernel --target x86_64-unknown-none -- -D warnings

docs: export RUSTDOCFLAGS := -D warnings
docs:
	$(CARGO) doc --quiet --no-deps
	$(CARGO) doc --quiet --no-deps --package kernel --package loader --target x86_64-unknown-none
	@command -v mdbook >/dev/null || [ -x target/tools/bin/mdbook ] || \
		$(CARGO) install --quiet --locked --no-default-features --root target/tools mdbook
	PATH="$$PATH:$$PWD/target/tools/bin" mdbook build docs
