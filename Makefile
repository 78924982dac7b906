# Two commands are enough to begin: `make demo` and `make test`. `make help` lists the rest.
#
# Everything happens in a virtual environment of its own, .venv, which is made on first use and
# brought up to date whenever pyproject.toml or constraints.txt is newer than it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
WORKERS := $(shell n=$(CORES); [ $$n -gt 4 ] && n=4; [ $$n -lt 2 ] && n=2; echo $$n)

# What hides instructions from torch and oneDNN: all beyond AVX2, or beyond the common ones of Arm.
PLAIN := $(if $(filter x86_64 amd64,$(shell uname -m)),ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2,ATEN_CPU_CAPABILITY=default)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-portable test-torchao check bench lint format docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.all ## teach a real model to judge reviews, to 85 % and more
	@$(BIN)/inlay demo

test: $(VENV)/.dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-portable: $(VENV)/.dev ## run the tests that depend on the processor, on a plainer one: AVX2 alone
	$(PLAIN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m processor $(ARGS)

test-torchao: $(VENV)/.torchao ## run the tests of bases that torchao quantises
	PYTHONPATH=$(VENV)/torchao OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/core/test_quantised.py tests/cli/test_quantised.py $(ARGS)

check: lint ## lint, types, architecture and generated documents
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m bench.docs --check

lint: $(VENV)/.dev ## ruff, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## let ruff repair and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## write the generated parts of README.md and docs/ anew
	$(BIN)/python -m bench.docs

bench: $(VENV)/.bench ## measure speed and memory, and write bench/results.json
	$(BIN)/python -m bench

clean: ## remove the environment and all caches
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed. Each stamp is one set of extras.

$(VENV)/.all: EXTRAS := all
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.bench: EXTRAS := all,bench

$(VENV)/.all $(VENV)/.dev $(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Not in the environment: where torchao is installed, transformers imports it with every model.
$(VENV)/.torchao: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/torchao torchao
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "inlay needs Python 3.11 or newer, and '$(PYTHON)' is not that; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "making the virtual environment $(VENV) (once; the downloads take a while)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@
