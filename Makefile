# `make demo` runs the tower, `make test` every test, `make lint` every check of style and types, `make bench`
# measures everything beside this host and QEMU.
# `make` compiles L0's hot modules too; where that fails it says so, and they run as Python.
# Each makes .venv by itself; what is already there and unchanged is not made again.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
# Cargo's build directory; the environment may point it elsewhere.
export CARGO_TARGET_DIR ?= $(CURDIR)/rust/target
RUST_SOURCES := $(shell find rust/src -name '*.rs') rust/Cargo.toml

.PHONY: all compiled demo bench test test-rust test-python lint format clean

all: compiled

compiled: $(VENV)/.built
	@$(BIN)/turtles compile || true

demo: compiled
	@.ci/need mke2fs:e2fsprogs || true
	$(BIN)/turtles demo

bench: $(VENV)/.bench compiled
	@.ci/need mke2fs:e2fsprogs cc:gcc qemu-system-x86_64:qemu-system-x86
	$(BIN)/turtles bench silicon
	$(BIN)/turtles bench peers

$(VENV)/.bench: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python .ci/requirements bench)
	touch $@

test: test-rust test-python

test-rust: $(VENV)/.tools
	cargo test --release --manifest-path rust/Cargo.toml

test-python: compiled
	$(BIN)/python -m pytest
	TURTLES_L0=python $(BIN)/python -m pytest tests/l0 tests/boots/test_embedded.py

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/stubtest turtles.silicon._silicon
	cargo fmt --manifest-path rust/Cargo.toml --check
	cargo clippy --release --manifest-path rust/Cargo.toml --all-targets --features python -- -D warnings

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cargo fmt --manifest-path rust/Cargo.toml

$(VENV)/.tools: pyproject.toml .ci/need
	@.ci/need cargo:cargo cc:gcc $(PYTHON):python3
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/need --install python3-venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "maturin>=1.9,<2" $$($(BIN)/python .ci/requirements)
	touch $@

$(VENV)/.built: $(VENV)/.tools $(RUST_SOURCES)
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet
	touch $@

clean:
	rm -rf $(VENV) rust/target build
