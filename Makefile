# Everything goes into .venv in this checkout; a fresh machine needs python3 (3.11 or newer) and make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
# In two processes, with one thread in each: threads that wait for each other's cores take longer than one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --no-loadscope-reorder

.PHONY: help install postgres nginx chromium demo test test-slow test-deploy lint bench

help:
	@echo "make demo       install, then one real job from a spec to a pulled backbone"
	@echo "make test       the tests"
	@echo "make test-slow  the long ones: faults in running jobs, searches, the dashboard in a browser"
	@echo "make test-deploy  docker-compose.yml with a real engine, from nothing to a job; then every service killed once"
	@echo "make lint       style, types, import rules"
	@echo "make bench      measurements; the last compares with nginx, which must be on the PATH"

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
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq postgresql; \
	  else \
	    echo "the tests need a Postgres server: sudo apt-get install postgresql" >&2; exit 1; \
	  fi; }

# They try the Compose file's front with a real nginx.
nginx:
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq nginx-light; \
	  else \
	    echo "the tests need nginx: sudo apt-get install nginx-light" >&2; exit 1; \
	  fi; }

# Nor has pip a browser.
chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq chromium; \
	  else \
	    echo "the browser's tests need Chromium: sudo apt-get install chromium" >&2; exit 1; \
	  fi; }

demo: $(STAMP)
	$(BIN)/rcmae demo

test: $(STAMP) postgres nginx
	$(PYTEST) -m "not slow and not deploy"

test-slow: $(STAMP) postgres chromium
	$(PYTEST) -m slow

# Needs Docker and docker-compose; writes tests/deploy/results.md.
test-deploy: $(STAMP)
	$(BIN)/python -m pytest -m deploy -x -s tests/deploy

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) postgres
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/data.py
	$(BIN)/python tests/benchmarks/features.py
	$(BIN)/python tests/benchmarks/evaluations.py
	$(BIN)/python tests/benchmarks/linear.py
	$(BIN)/python tests/benchmarks/orchestration.py
	$(BIN)/python tests/benchmarks/loop.py
	$(BIN)/python tests/benchmarks/api.py
	$(BIN)/python tests/benchmarks/searches.py
	$(BIN)/python tests/benchmarks/stream.py
	$(BIN)/python tests/benchmarks/pull.py
	$(BIN)/python tests/benchmarks/dashboard.py
	$(BIN)/python tests/benchmarks/open_pages.py
