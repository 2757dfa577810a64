# Everything a new machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: plan test test-all check fuzz bench bench-kernels intervals scoreboard readme clean

plan: $(VENV)/installed
	$(BIN)/codesign plan --hw a100 --model llama-7b

test: $(VENV)/installed-test
	scripts/test

test-all: $(VENV)/installed-test
	scripts/test --slow

check: $(VENV)/installed-test
	scripts/check

bench: $(VENV)/installed
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_capacity.py

bench-kernels: $(VENV)/installed-test
	$(BIN)/python scripts/bench_kernels.py

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/installed-fuzz
	$(BIN)/python scripts/fuzz.py --seconds $(FUZZ_SECONDS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/installed-fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	@touch $@

intervals: $(VENV)/installed
	$(BIN)/python scripts/fit_intervals.py

scoreboard: $(VENV)/installed
	$(BIN)/python scripts/scoreboard.py

readme: $(VENV)/installed
	$(BIN)/python scripts/update_readme.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
