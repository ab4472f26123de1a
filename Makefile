# The two commands of the README. Both set up .venv first, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
SEEDS ?= 2000
PEERS ?= 8
ROUNDS ?= 500

.PHONY: demo test test-all lint simulate faults fuzz soak proto install clean

demo: $(INSTALLED)
	@$(BIN)/dugnad demo $(ARGS)

install: $(INSTALLED)

# For people: linters, types and tests. Real processes come after the others, alone.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not swarm and not slow and not faults' $(ARGS)
	$(BIN)/python -m pytest -m 'swarm and not slow and not faults' $(ARGS)

# For CI: the long tests as well.
test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not swarm and not faults' $(ARGS)
	$(BIN)/python -m pytest -m 'swarm and not faults' $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# SEEDS is a number or a range a:b.
simulate: $(INSTALLED)
	@$(BIN)/dugnad simulate --seeds $(SEEDS) --peers $(PEERS) $(ARGS)

# Every role, phase and kind of fault, with real processes: about half an hour. `make test-all` has a selection.
faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults -s tests/swarm/test_faults.py $(ARGS)

# A million damaged inputs to every decoder, and new examples for every property of the wire and the round: some minutes.
fuzz: $(INSTALLED)
	DUGNAD_FUZZ_INPUTS=1000000 DUGNAD_FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -s tests/protocols/test_fuzz.py
	DUGNAD_FUZZ_INPUTS=1000000 $(BIN)/python -m pytest -n 2 tests/protocols/test_wire.py tests/protocols/round

# Is a peer's memory flat over ROUNDS rounds with a fault in every third? About a quarter of an hour.
soak: $(INSTALLED)
	@$(BIN)/python -m tests.swarm.soak --rounds $(ROUNDS)

proto: $(INSTALLED)
	PYTHON=$(CURDIR)/$(BIN)/python protocols/wire/generate.sh

# torch comes first and exactly: a range would take gigabytes of another build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("dugnad needs Python 3.10 to 3.13; choose one with: make PYTHON=python3.12") if not (3, 10) <= sys.version_info[:2] < (3, 14) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
