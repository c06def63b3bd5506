# What a developer types. Each target does its own set-up: a virtual environment in .venv with pinned packages.
# PYTHON=python3.12 chooses another interpreter, PYTEST_ARGS="-m slow" goes to pytest.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Named after the checkout's place, since an environment that was moved or copied has wrong paths inside.
STAMP := $(VENV)/installed-$(shell pwd | cksum | cut -d ' ' -f 1)

XLA_VENV := .venv-xla
XLA_STAMP := $(XLA_VENV)/installed-$(shell pwd | cksum | cut -d ' ' -f 1)

BEAM := .beam

.PHONY: help install xla-env beam-env demo test lint format types docs bench kind-up kind-down clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with the pinned packages (again when pyproject.toml or constraints.txt changed)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	    { echo "make: '$(PYTHON)' was not found; install Python 3.11 or newer, or: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $$($(PYTHON) -V) is too old; Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "make: installing pinned packages into $(VENV), about two minutes"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/installed-* && touch $@

xla-env: $(XLA_STAMP) ## make .venv-xla, where torch_xla runs on a CPU: its tests find it there (5 GB; pytest -m xla)

# torch_xla wants a torch of its own, and that one's build on the package index CUDA libraries that nothing here uses.
$(XLA_STAMP): tests/xla-requirements.txt constraints.txt
	@echo "make: installing torch_xla into $(XLA_VENV), about three minutes"
	@$(XLA_VENV)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(XLA_VENV)
	@$(XLA_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r tests/xla-requirements.txt
	@grep -v '^torch==' constraints.txt >$(XLA_VENV)/constraints.txt
	@$(XLA_VENV)/bin/python -m pip install -qq --disable-pip-version-check -c $(XLA_VENV)/constraints.txt absl-py filelock \
	    fsspec jinja2 networkx numpy protobuf pyarrow pyyaml requests safetensors sentencepiece sympy transformers \
	    typing-extensions
	@PJRT_DEVICE=CPU $(XLA_VENV)/bin/python -c 'import torch_xla; torch_xla.device()'
	@rm -f $(XLA_VENV)/installed-* && touch $@

beam-env: $(BEAM)/installed ## put Apache Beam into .beam, where its test finds it (160 MB)

$(BEAM)/installed: $(STAMP) tests/beam-requirements.txt
	@rm -rf $(BEAM)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(BEAM) -r tests/beam-requirements.txt
	@touch $@

demo: $(STAMP) ## train, evaluate and register a model on the shipped sentences, and show where it came from
	@$(BIN)/xlnet-pipeline run
	@$(BIN)/xlnet-pipeline lineage uci-sentences
	@echo
	@echo "Where to look next:"
	@echo "  $(BIN)/xlnet-pipeline ui       # all of this in a browser: runs, curves, lineage, models"
	@echo "  $(BIN)/xlnet-pipeline predict uci-sentences 'what a lovely film'"
	@echo "  $(BIN)/xlnet-pipeline lineage uci-sentences --html lineage.html"
	@echo "  $(BIN)/xlnet-pipeline runs list"
	@echo "  $(BIN)/xlnet-pipeline init     # a commented recipe.toml for your own texts"

test: lint types docs ## lint, types, documents and tests; PYTEST_ARGS="-k caching" chooses tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## mistakes and formatting: Python, shell scripts, the Dockerfile, YAML, workflows
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR .ci/run containers/*.sh infra/kind/*.sh
	@$(BIN)/hadolint containers/Dockerfile
	@$(BIN)/yamllint --strict .github infra .pre-commit-config.yaml
	@$(BIN)/zizmor --offline --no-progress --quiet .github

format: $(STAMP) ## let ruff rewrite the formatting
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(STAMP) ## mypy
	@$(BIN)/mypy

docs: $(STAMP) ## build the documentation into build/docs; every warning, such as a broken link, is an error
	@$(BIN)/sphinx-build -q -W --keep-going docs build/docs

bench: $(STAMP) ## measure the demo's time and memory (tests/benchmarks has more)
	@$(BIN)/python tests/benchmarks/demo_limits.py

kind-up: ## a cluster on this machine with Kubeflow Pipelines and MLflow (infra/kind/settings.sh says what can be set)
	@infra/kind/up.sh

kind-down: ## remove that cluster, with all runs and models in it
	@infra/kind/down.sh

clean: ## remove the environment, caches and builds; runs and models under .xlnet-pipeline stay
	rm -rf $(VENV) $(XLA_VENV) dist build .pytest_cache .mypy_cache .ruff_cache
	find components pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +
