# Thin and self-documenting: each target is a line or two; `make` prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check bench lock clean

help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the locked dependencies

$(READY): requirements/dev.lock requirements/uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Freshet needs Python 3.11 or newer; %s is %d.%d. Try: make setup PYTHON=python3.12" % ((sys.executable,) + v))'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@echo "installing locked dependencies into $(VENV) ..." >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## A real month through the whole pipeline, compared with pandas (DATA=FILE for the year)
	@$(BIN)/freshet demo $(if $(DATA),--data $(DATA))

up: setup ## Run the pipeline until Ctrl-C and print its addresses
	@$(BIN)/freshet up

test: setup ## All tests, on both cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q

check: setup ## Formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup ## Merge benchmark: this lake beside its alternatives and the floor
	@$(BIN)/python benchmarks/merge.py

lock: setup ## Renew the lock files from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra lake --extra local --extra dev --extra bench pyproject.toml -o requirements/dev.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --constraint requirements/dev.lock pyproject.toml -o src/requirements.txt

clean: ## Remove the environment and local state
	rm -rf $(VENV) .freshet .pytest_cache .mypy_cache .ruff_cache .hypothesis
