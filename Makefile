# Two commands are enough: `make demo` and `make test`. Each does its own set-up, and skips what is already done.
#
#   make setup     the virtual environments (the project's, and one with vLLM on CPU for its tests), the page
#   make demo      talk to the built-in model and watch its probes   (ARGS="--model <Hugging Face id or path>")
#   make test      every test                        (ARGS="tests/ring -k late": those, of the main environment)
#   make test-vllm the tests that run real vLLM       (ARGS="-k prefix": those)
#   make lint      ruff, mypy, the page's own checks
#   make bench     the benches; BENCH=ring for one of them
#   make builtin   make the built-in model and its probes again, from nothing (about an hour)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := .venv-vllm
STAMP  := .stamps
WEB    := $(shell find web/src web/index.html web/package.json web/vite.config.ts -type f 2>/dev/null)

.PHONY: setup demo test test-vllm lint bench builtin api clean

setup: $(STAMP)/python $(STAMP)/page $(STAMP)/vllm

$(STAMP)/python: pyproject.toml constraints.txt
	@mkdir -p $(STAMP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

# The list is the whole environment and is installed as it stands; constraints-vllm.txt says why.
$(STAMP)/vllm: pyproject.toml constraints-vllm.txt
	@mkdir -p $(STAMP)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(STAMP)/node_modules: web/package.json web/package-lock.json
	@mkdir -p $(STAMP)
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(STAMP)/page: $(STAMP)/node_modules $(WEB)
	cd web && npm run --silent build
	@touch $@

$(STAMP)/node_clients: tests/gateway/node/package.json tests/gateway/node/package-lock.json
	@mkdir -p $(STAMP)
	cd tests/gateway/node && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

demo: $(STAMP)/python $(STAMP)/page
	$(BIN)/actscope demo $(ARGS)

test: setup $(STAMP)/node_clients
	bash scripts/browser.sh
	cd web && npm run --silent test
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(BIN)/python -m pytest --ignore tests/bench --numprocesses 2 --dist loadfile)
	$(if $(ARGS),,$(BIN)/python -m pytest tests/bench)
	$(if $(ARGS),,$(MAKE) --no-print-directory test-vllm)

# Every model in every way to run: VLLM_TESTS=all make test-vllm
test-vllm: $(STAMP)/vllm
	bash scripts/vllm.sh
	$(VLLM)/bin/python -m pytest tests/engines/vllm $(or $(ARGS),--numprocesses 2 --dist loadfile)

lint: $(STAMP)/python $(STAMP)/page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd web && npm run --silent lint && npm run --silent typecheck

bench: $(STAMP)/python $(STAMP)/page
	$(BIN)/python bench/run.py $(BENCH)

# The page's typed client, from the gateway's own OpenAPI.
api: $(STAMP)/python $(STAMP)/node_modules
	$(BIN)/python -m actscope.gateway > web/openapi.json
	cd web && npm run --silent api

builtin: $(STAMP)/python
	$(BIN)/python -m actscope.engines.builtin.train $(ARGS)
	$(BIN)/python -m actscope.engines.builtin.evaluate
	$(BIN)/actscope probe train --model actscope/builtin --out src/actscope/engines/builtin/probes

clean:
	rm -rf $(VENV) $(VLLM) $(STAMP) web/node_modules tests/gateway/node/node_modules src/actscope/gateway/static
