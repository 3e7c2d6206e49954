# Everything happens in .venv, which is made and filled when it is first needed and when the requirements change.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test test-slow lint bench install

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[server,trainer,dev]'
	touch $@

# A real job on this machine, from submission to a pulled backbone.
demo: $(READY)
	$(RUN)/rcmae demo

test: $(READY)
	$(RUN)/pytest -m 'not slow'

test-slow: $(READY)
	$(RUN)/pytest -m slow

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

bench: $(READY)
	for file in tests/benchmarks/*.py; do echo "== $$file"; $(RUN)/python $$file || exit 1; done
