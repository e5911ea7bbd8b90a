# make demo   install, train the first model, let it write
# make test   install, run the tests
# Each creates .venv if there is none and needs nothing but Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.installed
RUN := runs/quickstart

.PHONY: demo test test-all faults-quick faults lint bench bench-all docs clean

demo: $(READY)
	@echo "== Training the first model: a few minutes on two cores"
	$(BIN)/llmt train $(if $(wildcard $(RUN)/checkpoint-*),$(RUN) --resume)
	@echo "== Letting it write"
	$(BIN)/llmt generate $(RUN) --prompt "Return a list of" --max-new-tokens 60
	@echo "== Next: $(BIN)/llmt --help"

test: $(READY)
	@echo "== Running the tests"
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart 0 -m "not slow"

test-all: $(READY) faults-quick
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -o faulthandler_timeout=3000

# COUNT=10 make faults tries ten times as much.
faults-quick: $(READY)
	$(BIN)/python tests/faults/run.py --quick --out build/faults-quick

faults: $(READY)
	$(BIN)/python tests/faults/run.py --out build/faults

lint: $(READY)
	$(BIN)/ruff check llmt tests docs
	$(BIN)/ruff format --check llmt tests docs
	$(BIN)/mypy

# LITGPT=PATH and NANOGPT=PATH say where those peers are.
bench: $(READY)
	$(BIN)/python -m tests.bench $(if $(LITGPT),--litgpt $(LITGPT)) $(if $(NANOGPT),--nanogpt $(NANOGPT))

# Data, tokenizers and files, each beside its peer.
bench-all: bench
	@for bench in tests/bench/bench_*.py; do echo "== $$bench" >&2; $(BIN)/python $$bench || exit 1; done

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@echo "== Creating $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "llmt needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@echo "== Installing llmt and what it needs: the first time this fetches torch and what it brings"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[fast,test,lint]"
	@touch $(READY)
