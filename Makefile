# llmvisor. `make help` tells what there is; every command sets up what it needs.
#
#   PYTHON=python3.12 make run    takes that Python (3.11 or newer)
#   make test ARGS="-k lock"      hands arguments to pytest
#   make run ARGS="--port 8080"   hands arguments to the daemon

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# A build that pip starts must not take this make's flags for its own.
unexport MAKEFLAGS MFLAGS MAKELEVEL

PYTHON ?=
ARGS ?=
SOAK_MINUTES ?= 30
VENV := .venv
BIN := $(VENV)/bin
PACKAGING := pyproject.toml constraints.txt

.PHONY: help run test test-fast soak check bench bench-peers model clean distclean

help:
	@printf '%s\n' \
	  'make run          set up, fetch the starter model, start the daemon in the foreground' \
	  'make test         every test' \
	  'make test-fast    the tests that need neither processes nor weights' \
	  'make soak         a daemon under load while things go wrong, for SOAK_MINUTES (30)' \
  'make check        lint, format and types' \
	  'make model        fetch the starter model, if it is not there' \
	  'make bench        every benchmark against its peer; writes benchmarks/RESULTS.md' \
	  'make bench-peers  build the peers that the benchmarks need (once)' \
	  'make clean        remove caches and build outputs' \
	  'make distclean    also remove the virtual environment'

run: $(VENV)/.installed-run
	@$(BIN)/python -m llmvisor.models.starter
	@exec $(BIN)/llmvisor $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m llmvisor.models.starter
	@$(BIN)/python -m pytest $(ARGS)

test-fast: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest tests/unit tests/style $(ARGS)

soak: $(VENV)/.installed-dev
	@$(BIN)/python -m llmvisor.models.starter
	@$(BIN)/python -m tests.soak.chaos --minutes $(SOAK_MINUTES) $(ARGS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright

model: $(VENV)/.installed-run
	@$(BIN)/python -m llmvisor.models.starter $(ARGS)

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m llmvisor.models.starter
	@$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(VENV)/.installed-run
	@$(BIN)/python -m benchmarks.peers $(ARGS)

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

# ------------------------------------------------------------------------------------------ the virtual environment

# The first of these that is new enough, unless PYTHON names one.
define FIND_PYTHON
new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
python=; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
  if new_enough "$$candidate"; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo 'llmvisor needs Python 3.11 or newer: install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; \
fi
endef

$(VENV)/.created:
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "Creating $(VENV) with $$("$$python" --version)"; \
	  if command -v uv >/dev/null; then \
	    uv venv --quiet --seed --allow-existing --python "$$(command -v "$$python")" $(VENV); \
	  elif ! "$$python" -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    echo "$$python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
	  fi; \
	fi
	@touch $@

# $(call INSTALL,EXTRAS): with uv where there is one, unless it does not know the index that pip is set up for.
define INSTALL
command -v uv >/dev/null && uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(1)]' \
  || $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

# llama.cpp is compiled on this machine, for this machine. pip says nothing for minutes while it does: its log is
# condensed into one line that counts, and kept whole beside it.
define BUILD_ENGINE
if ! $(BIN)/python -c 'import importlib.util as i, sys; sys.exit(i.find_spec("llama_cpp") is None)'; then \
  if ! command -v "$${CC:-cc}" >/dev/null; then \
    echo 'llama.cpp is compiled during setup, and there is no C compiler (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)' >&2; exit 1; \
  fi; \
  echo 'Installing llama-cpp-python: llama.cpp is compiled here, the first time; about 4 minutes on 2 cores'; \
  set -o pipefail; \
  if ! $(BIN)/python -m pip install --verbose --disable-pip-version-check -c constraints.txt llama-cpp-python 2>&1 \
      | tee $(VENV)/engine-build.log | $(SHOW_BUILD); then \
    tail -n 40 $(VENV)/engine-build.log >&2; \
    echo 'llama-cpp-python could not be installed; the whole log: $(VENV)/engine-build.log' >&2; exit 1; \
  fi; \
fi
endef

define SHOW_BUILD
{ last=; while IFS= read -r line; do \
  if [[ $$line =~ \[([0-9]+)/([0-9]+)\] ]]; then \
    percent=$$(( BASH_REMATCH[1] * 100 / BASH_REMATCH[2] )); \
    if [ -t 1 ]; then printf '\r  compiling %s of %s (%d %%) ' "$${BASH_REMATCH[1]}" "$${BASH_REMATCH[2]}" "$$percent"; last=open; \
    elif [ "$$(( percent / 10 ))" != "$$last" ]; then last=$$(( percent / 10 )); echo "  compiling $$percent %"; fi; \
  elif [[ $$line =~ ^[[:space:]]*(Collecting|Downloading|Using\ cached|Building\ wheel|Successfully)\  ]]; then \
    if [ "$$last" = open ]; then echo; last=; fi; \
    printf '  %.110s\n' "$${line#"$${line%%[![:space:]]*}"}"; \
  fi; \
done; }
endef

$(VENV)/.installed-run: $(VENV)/.created $(PACKAGING)
	@$(BUILD_ENGINE)
	@echo 'Installing llmvisor and its libraries'
	@$(call INSTALL,llamacpp)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-run $(PACKAGING)
	@echo 'Installing what tests and checks need'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt torch
	@$(call INSTALL,llamacpp$(comma)mlx$(comma)flag$(comma)dev)
	@touch $@

comma := ,
