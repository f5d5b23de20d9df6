# Slimfront, one command each; `make` lists them. Each sets up $(VENV) first, where it has to.

PYTHON ?= python3
VENV ?= .venv
SLOW ?=
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
BENCHMARKS := $(sort $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/[a-z]*.py)))
SHORT_search := --samplers front,nsga2+ --seeds 1 --evaluations 40 --json benchmarks/results/search-short.json
SHORT_storage := --quick --json benchmarks/results/storage-short.json
SHORT_rungs := --seeds 1 --trials 20 --json benchmarks/results/rungs-short.json
SHORT_scale := --short --samplers front --json benchmarks/results/scale-short.json
LINTED := $(wildcard spaces compress objectives search slimfront.py tests benchmarks)

# Prints the version of the torch that the asked Python sees, if Slimfront can use it (see pyproject.toml).
define FIND_TORCH
from importlib.metadata import PackageNotFoundError, version
try:
    found = version("torch")
    if (2, 9) <= tuple(int(number) for number in found.split(".")[:2]) < (3, 0):
        print(found)
except (PackageNotFoundError, ValueError):
    pass
endef
export FIND_TORCH

.DEFAULT_GOAL := help
.PHONY: help quickstart test check bench docs examples clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON=python3.12 chooses the Python, VENV=folder the environment. A torch that PYTHON already has is used."

quickstart: $(VENV)/.installed-base ## install, compress a small model, show the front and what to type next
	@$(BIN)/slimfront launch configs/quickstart.yaml
	@$(BIN)/slimfront front quickstart --plot quickstart-front.png >/dev/null
	@printf '%s\n' '' 'The picture is in quickstart-front.png. After `. $(BIN)/activate` the command is just slimfront.'

test: $(VENV)/.installed-dev ## run the tests; SLOW=1 runs the slow ones too
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(if $(filter-out 0,$(SLOW)),,-m "not slow")

check: $(VENV)/.installed-dev ## ruff, mypy and import-linter
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-dev ## run every benchmark in benchmarks/, those that take hours in a short form
	@set -e; $(foreach name,$(BENCHMARKS),echo "== $(name)"; $(BIN)/python -m benchmarks.$(name) $(SHORT_$(name));)

docs: $(VENV)/.installed-base ## write the generated parts of docs/reference.md anew
	@$(BIN)/python docs/generate.py

examples: $(VENV)/.installed-base ## run eight trials of every config in configs/, in a store that is thrown away
	@store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && for file in configs/*.yaml; do \
	  echo "== $$file"; $(BIN)/slimfront launch "$$file" --trials 8 --storage "sqlite:///$$store/examples.db" || exit 1; \
	done

clean: ## remove the environment, caches and builds; studies, policies and models stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------------- the environment

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Slimfront needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12 ..., say" >&2; exit 1; }
	@found=$$($(PYTHON) -c "$$FIND_TORCH") || exit 1; \
	if [ -n "$$found" ]; then \
	  echo "creating $(VENV), with the torch $$found that $(PYTHON) has"; \
	  $(PYTHON) -m venv --system-site-packages $(VENV) || exit 1; \
	  if [ -z "$$($(BIN)/python -c "$$FIND_TORCH")" ]; then \
	    packages="import sysconfig; print(sysconfig.get_path('purelib'))"; \
	    $(PYTHON) -c "$$packages" > "$$($(BIN)/python -c "$$packages")/the-environment-with-torch.pth"; \
	  fi; \
	else \
	  echo "creating $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) || exit 1; \
	fi; \
	echo "$$found" > $@

# The pinned versions; where a torch was found, less torch and setuptools (each torch admits its own).
$(VENV)/constraints.txt: $(VENV)/.created constraints.txt
	@if grep -q . $(VENV)/.created; then sed -e '/^torch==/d' -e '/^setuptools==/d' constraints.txt > $@; else cp constraints.txt $@; fi

# $(call install,WHAT,IN WORDS)
define install
	@grep -q . $(VENV)/.created || { echo "installing torch (first time: a few minutes) ..." && \
	  $(PIP) install -c $(VENV)/constraints.txt torch; }
	@echo "installing $(2) (first time: a few minutes) ..."
	@$(PIP) install -c $(VENV)/constraints.txt -e '$(1)'
	@$(PIP) install -c $(VENV)/constraints.txt --no-deps animal-mnist
endef

$(VENV)/.installed-base: $(VENV)/constraints.txt pyproject.toml
	$(call install,.,Slimfront and what it needs)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/constraints.txt pyproject.toml
	$(call install,.[dev],Slimfront with its tests and checks)
	@touch $(VENV)/.installed-base $@
