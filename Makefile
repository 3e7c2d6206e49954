# Everything goes into .venv in this checkout; a fresh machine needs python3 (3.11 or newer) and make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: help install postgres demo test test-slow lint bench

help:
	@echo "make demo       install, then one real job from a spec to a pulled backbone"
	@echo "make test       the tests"
	@echo "make test-slow  the long ones: faults in running jobs"
	@echo "make lint       style, types, import rules"
	@echo "make bench      measurements"

# Pins decide what is installed: the environment is made anew where they changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,trainer,dev]'
	touch $@

install: $(STAMP)

# The tests run a Postgres server of their own, of Debian's binaries.
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql; \
	  else \
	    echo "the tests need a Postgres server: sudo apt-get install postgresql" >&2; exit 1; \
	  fi; }

demo: $(STAMP)
	$(BIN)/rcmae demo

test: $(STAMP) postgres
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP) postgres
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/data.py
	$(BIN)/python tests/benchmarks/orchestration.py
