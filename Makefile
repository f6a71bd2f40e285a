# Thin and self-documenting: each target is a line or two; `make` prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tools with pins of their own live in environments of their own (pyproject.toml, dependency-groups).
SAM := $(VENV)/sam/bin/sam
CHECKOV := $(VENV)/checkov/bin/checkov
export SAM_CLI_TELEMETRY := 0

# In order of their names: what takes long (e2e) comes early, and no worker is left alone with it at the end.
TWO_CORES := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup tools demo up test long fuzz chaos check build local-deploy local-aws bench lock clean

help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the locked dependencies

# Bytecode is made at once: where Python may write none, every command would compile for a second.
$(READY): requirements/dev.lock requirements/uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Freshet needs Python 3.11 or newer; %s is %d.%d. Try: make setup PYTHON=python3.12" % ((sys.executable,) + v))'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@echo "installing locked dependencies into $(VENV) ..." >&2
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.lock || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src
	@touch $@

tools: setup $(SAM) $(CHECKOV) ## Make the environments of SAM CLI and checkov

$(SAM): requirements/sam.lock | setup
	@$(call tool,sam)

$(CHECKOV): requirements/checkov.lock | setup
	@$(call tool,checkov)

define tool
echo "installing $(1) into $(VENV)/$(1) ..." >&2
$(PYTHON) -m venv --clear $(VENV)/$(1)
$(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV)/$(1)/bin/python --require-hashes -r requirements/$(1).lock
touch $(VENV)/$(1)/bin/$(1)
endef

demo: setup ## A real month through the whole pipeline, compared with pandas (DATA=FILE for the year)
	@$(BIN)/freshet demo $(if $(DATA),--data $(DATA))

up: setup ## Run the pipeline until Ctrl-C and print its addresses
	@$(BIN)/freshet up

long: fuzz chaos ## What takes minutes: ten million fuzz inputs, the chaos run, the long tests
	@$(BIN)/python -m pytest $(TWO_CORES) -q -m long --hypothesis-profile=default

fuzz: setup ## Ten million inputs for the decoders
	@$(BIN)/python -m tests.fuzz.decoders --runs 10000000 --jobs 2

chaos: setup ## 100,000 events, poison, crashes, splits and merges through the local runtime
	@$(BIN)/python -m tests.chaos.run --events 100000

test: setup $(SAM) ## All tests, on both cores
	@$(BIN)/python -m pytest $(TWO_CORES) -q

check: tools ## Formatting, lint, types, template, policies and contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(SAM) validate --lint --region us-east-1
	@$(VENV)/sam/bin/cfn-lint template.yaml
	@$(CHECKOV) --config-file .checkov.yaml
	@$(BIN)/freshet contracts check

build: setup $(SAM) ## Build what deploys, without a container
	@PYTHON=$(abspath $(BIN)/python) $(SAM) build

local-deploy: setup $(SAM) ## Deploy the template to embedded AWS on this machine, until Ctrl-C (no Docker)
	@$(BIN)/freshet local-deploy

local-aws: setup ## LocalStack and a Glue stand-in in Docker, with stream, buckets, database and secret
	@docker compose up --detach --build --wait
	@$(BIN)/freshet --aws localstack tables

bench: setup ## Merge benchmark: this lake beside its alternatives and the floor
	@$(BIN)/python benchmarks/merge.py

lock: setup ## Renew the lock files from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra lake --extra local --extra dev --extra bench pyproject.toml -o requirements/dev.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --constraint requirements/dev.lock pyproject.toml -o src/requirements.txt
	@$(BIN)/uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --constraint requirements/dev.lock layers/lake/requirements.in -o layers/lake/requirements.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group sam -o requirements/sam.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group checkov -o requirements/checkov.lock

clean: ## Remove the environment and local state
	rm -rf $(VENV) .freshet .freshet-localstack .aws-sam .pytest_cache .mypy_cache .ruff_cache .hypothesis
