# Each command does the set-up it needs. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# One set of versions for every environment that pip makes here, its isolated build environments included.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SYSTEM_PACKAGES := g++ libev-dev python3-dev python3-venv
PACKAGE_SOURCES := setup.py $(wildcard ext/*.pyx pyserve/*.pxd ext/*.h ext/*.hpp ext/*.cpp)

.PHONY: help build serve test test-wheel test-slow test-sanitize bench bench-baseline load load-report compare wheel lint clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	@missing=; \
	command -v g++ >/dev/null || missing=1; \
	[ -e /usr/include/ev.h ] || [ -e /usr/include/libev/ev.h ] || missing=1; \
	$(PYTHON) -c 'import ensurepip, venv, sysconfig, os; \
	  os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || missing=1; \
	if [ -n "$$missing" ]; then \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	  echo "installing system packages: $(SYSTEM_PACKAGES)"; \
	  { $$as_root apt-get update -qq && \
	    $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(SYSTEM_PACKAGES) >/dev/null; } || \
	  { echo "pyserve needs a C++ compiler, libev's headers and Python's headers, and could not install them." >&2; \
	    echo "Run this once, then make again:  sudo apt-get install $(SYSTEM_PACKAGES)" >&2; exit 1; }; \
	fi
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pyserve needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet setuptools wheel Cython pybind11
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[build,test,train,lint]'
	@touch $@ $(VENV)/built

$(VENV)/built: $(VENV)/installed $(PACKAGE_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	@touch $@

build: $(VENV)/built ## build the package into .venv

# Where nobody names a model, the real one is fetched first. A failed attempt is not repeated for 12 hours: the starter
# model serves then, and says so.
FETCH_FAILED := $(VENV)/fetch-failed
serve: build ## serve on 127.0.0.1:9000; more options in ARGS
	@if [ -z "$(findstring --model,$(ARGS))$$PYSERVE_MODEL" ] && [ ! -e models/amazon_review_full.ftz ] && \
	  [ -z "$$(find $(FETCH_FAILED) -mmin -720 2>/dev/null)" ]; then \
	  $(BIN)/pyserve fetch amazon_review_full --stall-timeout 3 --max-time 30 || touch $(FETCH_FAILED); \
	fi
	$(BIN)/pyserve serve $(ARGS)

# What some tests use where it is there.
$(VENV)/test-tools:
	@as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; command -v wrk >/dev/null || \
	{ $$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y wrk >/dev/null; } || \
	echo "wrk could not be installed: the tests that need it are skipped" >&2
	@mkdir -p $(VENV) && touch $@

test: build $(VENV)/test-tools ## run the tests
	$(BIN)/pytest -m 'not slow' $(ARGS)

test-wheel: build ## build a wheel and an sdist, install both elsewhere and serve
	$(BIN)/pytest -m slow tests/test_wheel.py $(ARGS)

test-slow: build ## run the tests that build wheels or run for minutes
	$(BIN)/pytest -m slow $(ARGS)

# Rounds that are long beside the clock's own resolution.
MICROBENCHMARKS := benchmarks --benchmark-enable --benchmark-only --benchmark-min-time=0.0001

bench: build ## run the microbenchmarks and compare them with those of the last release
	$(BIN)/pytest $(MICROBENCHMARKS) $(ARGS)

bench-baseline: build ## save the microbenchmarks as those of this release, for this machine
	$(BIN)/pytest $(MICROBENCHMARKS) --save-baseline $(ARGS)

# The servers that ours is compared with, and what draws the pictures.
$(VENV)/compared: $(VENV)/installed
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[bench]'
	@touch $@ $(VENV)/built

load: build $(VENV)/compared ## measure latency and rates beside other servers; ARGS=--quick for a first look
	$(BIN)/python -m benchmarks.load $(ARGS)

load-report: build $(VENV)/compared ## draw the pictures and write the README's section from the last measurement
	$(BIN)/python -m benchmarks.report $(ARGS)

compare: build $(VENV)/compared ## compare the greatest rate with the article's server and plain bjoern
	$(BIN)/python -m benchmarks.compare $(ARGS)

wheel: build ## put a wheel and an sdist into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/auditwheel repair --wheel-dir dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl

# The extensions once more, with AddressSanitizer and UndefinedBehaviorSanitizer, and the tests that exercise them.
SANITIZED := build/sanitized
test-sanitize: export PYSERVE_SANITIZE := 1
test-sanitize: $(VENV)/installed ## run the tests under ASan and UBSan
	$(BIN)/python setup.py --quiet build --build-lib $(SANITIZED) --build-temp build/sanitized-objects
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	PYTHONPATH="$(CURDIR)/$(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	$(BIN)/pytest -o pythonpath="$(SANITIZED) ." -p no:cacheprovider -m 'not slow' $(ARGS)

wheel lint: export PATH := $(CURDIR)/$(BIN):$(PATH)

lint: build ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint ext pyserve/*.pxd
	$(BIN)/mypy
	$(BIN)/stubtest --concise --mypy-config-file pyproject.toml pyserve

clean: ## remove what the other commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache pyserve/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
