PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: install test others check quick s3 ray faults slow test-faults load nemesis zoo demo bench format clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Tests on Ray mostly wait for processes to start; the others take the time that they leave.
test: install
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target ray others

others:
	nice -n 19 $(MAKE) --no-print-directory --jobs=1 check quick s3 faults zoo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: install
	$(PYTEST) tests/unit

s3: install
	$(PYTEST) tests/s3

ray: install
	$(PYTEST) tests/ray -m 'not slow'

faults: install
	$(PYTEST) tests/faults -m 'not slow'

slow: install
	$(PYTEST) tests --ignore=tests/faults --ignore=tests/load -m slow

# Every fault, half an hour; ends with a table of them.
test-faults: install
	$(PYTEST) tests/faults

# 100,000 objects, 200 checkpoints, 8 jobs at once.
load: install
	$(PYTEST) tests/load

# Faults by chance, 20 seeds of them; 40 minutes.
nemesis: install
	$(BIN)/python -m tests.faults.kit.nemesis --seeds 20

zoo: install
	$(PYTEST) tests/zoo

demo: install
	$(BIN)/python -m raycnn.demo

bench: install
	$(BIN)/python -m tests.bench

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo-output
