# Needs Python 3.11 or later, git and make. Everything is installed into .venv; nothing else is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EPSILON ?= 8

# No telemetry, no update checks; threads that wait quietly beside other work (a spinning OpenMP pool
# is many times slower on a shared machine).
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-gpu check format bench docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "carefl-secure needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch>=2.13,<2.15"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP) ## make .venv with everything in it

train: $(STAMP) ## train the default federation at epsilon 8 (EPSILON=4 changes it)
	$(BIN)/carefl-secure train --epsilon $(EPSILON)

check: $(STAMP) ## lint, format check, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p carefl_secure

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: export HF_HUB_OFFLINE := 1
test: check ## check, then all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist loadfile --no-loadscope-reorder

test-gpu: export HF_HUB_OFFLINE := 1
test-gpu: $(STAMP) ## the tests and the benchmark that need a CUDA device, with a CUDA build of torch in .venv
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo "no CUDA device: install a CUDA build of torch 2.13 into .venv, and check nvidia-smi" >&2; exit 1; }
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

test-slow: export HF_HUB_OFFLINE := 1
test-slow: $(STAMP) ## the slow tests
	$(BIN)/python -m pytest -m slow

bench: $(STAMP) ## run every benchmark but goemotions.py, which needs files of yours; fails where a bar is missed
	@failed=0; for script in $(filter-out benchmarks/goemotions.py,$(wildcard benchmarks/[a-z]*.py)); do \
		test -e "$$script" || { echo "no benchmarks yet"; break; }; \
		echo "== $$script"; $(BIN)/python "$$script" || failed=1; \
	done; exit $$failed

docs: $(STAMP) ## build the documentation into site/, which needs no network to be read
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site
	@echo "open site/index.html, or: $(BIN)/python -m http.server --directory site"

clean: ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
