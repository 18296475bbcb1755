PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: install test others check quick s3 ray faults slow test-faults load nemesis zoo recipes test-recipes study study-splits demo bench growth peers gpu-check format clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Tests on Ray mostly wait for processes to start; the others take the time that they leave.
test: install
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target ray others

others:
	nice -n 19 $(MAKE) --no-print-directory --jobs=1 check quick s3 faults zoo recipes

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
	$(PYTEST) tests --ignore=tests/faults --ignore=tests/load --ignore=tests/recipes -m slow

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

recipes: install
	$(PYTEST) tests/recipes -m 'not slow'

# Does `raycnn choose` rank networks as fine-tunes do? Half an hour.
study: install
	$(BIN)/python -m tests.study

# How accurate is the recipe cells.yaml on five splits, beside linear models on frozen features? An hour.
study-splits: install
	$(BIN)/python -m tests.study.splits jobs/recipes/cells.yaml

# Every recipe of jobs/recipes to its expected result.
test-recipes: install
	$(PYTEST) tests/recipes

demo: install
	$(BIN)/python -m raycnn.demo

bench: install peers
	$(BIN)/python -m tests.bench

# What the bench compares with, beside .venv and on top of it.
peers: .venv-peers/.installed

# Their own claims on versions of torch and numpy are too old: what of them is needed is listed.
.venv-peers/.installed: tests/bench/peers.txt tests/bench/peers-needs.txt | install
	test -x .venv-peers/bin/python || $(BIN)/python -m venv .venv-peers
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-peers/venv.pth
	mv .venv-peers/venv.pth $$(.venv-peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/bench/peers.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r tests/bench/peers-needs.txt
	touch $@

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-peers demo-output
