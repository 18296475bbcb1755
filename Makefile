PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: install test check quick s3 ray zoo demo bench format clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

test: check quick s3 zoo ray

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: install
	$(PYTEST) tests/unit

s3: install
	$(PYTEST) tests/s3

ray: install
	$(PYTEST) tests/ray

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
