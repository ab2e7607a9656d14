# `make demo` and `make test` need Python 3.11-3.13, make and a network the first time; after that they start at once.
# PYTHON=... picks the interpreter, REQUIREMENTS=cpu|cuda overrides what the machine is found to be.
.NOTPARALLEL:
.PHONY: help demo test test-newest test-oldest fuzz sanitize lint format typecheck docs lock clean

REQUIREMENTS ?= $(if $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
INSTALLED := .venv/.installed-$(REQUIREMENTS)
PY := .venv/bin/python

# What Python compiles is kept, whatever the environment says: each process would else compile torch anew.
export PYTHONDONTWRITEBYTECODE =

help:
	@echo "make demo       train with full and compressed tables, write out/demo/report.html"
	@echo "make test       lint, type check, tests"
	@echo "make test-newest  the tests with the newest releases of torch, torchrec and FBGEMM, in an environment of its own"
	@echo "make test-oldest  the tests with the oldest releases of all packages, in an environment of its own"
	@echo "make fuzz       SECONDS=600 of random inputs in each area, and the counts"
	@echo "make sanitize   tests of compiled code on a build with sanitizers"
	@echo "make lint | format | typecheck | docs | lock | clean"

demo: $(INSTALLED)
	$(PY) -m experiments demo

# Types are checked beside the tests, and heard of after them. One thread per worker: torch regions of several threads cost
# more than they save when workers share cores.
test: lint
	$(PY) -m pyright >.venv/types.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal; tests=$$?; \
	wait $$types || { cat .venv/types.log; exit 1; }; exit $$tests

# What GPUs get, with the CPU build of FBGEMM; the build of torch on PyPI brings its CUDA libraries (some GB).
test-newest: $(INSTALLED)
	$(PY) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install -q --no-compile --constraint requirements/cuda.txt torch
	sed 's/^fbgemm-gpu==/fbgemm-gpu-cpu==/' requirements/cuda.txt >.venv-newest/rest.txt
	.venv-newest/bin/python -m pip install -q --no-compile --no-deps --requirement .venv-newest/rest.txt
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The torch, torchrec and FBGEMM of CPUs, which are the oldest that work, and the oldest of all else.
test-oldest: $(INSTALLED)
	$(PY) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install -q --no-compile --constraint requirements/cpu.txt torch
	grep -vE "^($$(sed -nE 's/==.*//p' requirements/oldest.txt | paste -sd'|'))==" requirements/cpu.txt >.venv-oldest/rest.txt
	cat requirements/oldest.txt >>.venv-oldest/rest.txt
	.venv-oldest/bin/python -m pip install -q --no-deps --requirement .venv-oldest/rest.txt  # else warnings of compilation fail tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

fuzz: $(INSTALLED)
	EMBCOMP_FUZZ_SECONDS=$(or $(SECONDS),600) OMP_NUM_THREADS=1 $(PY) -m pytest tests/fuzz -q --timeout 0

sanitize: $(INSTALLED)
	$(PY) -m tests.fuzz.sanitizers

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: $(INSTALLED)
	$(PY) -m pyright

docs: $(INSTALLED)
	$(PY) -m mkdocs build --strict

# The stamp comes last, so that a set-up that failed is begun again. torch goes in first and with its requirements, because
# the CUDA build (all that PyPI has for x86-64) needs libraries that the CPU build does not. All else is listed, so --no-deps:
# torchrec declares the CUDA build of FBGEMM, which would overwrite the CPU build. uv takes a seventh of pip's time; where it
# cannot reach the packages (it does not read pip's configuration), pip goes on. --no-compile: Python compiles what is
# imported, the first time; most files never are.
$(INSTALLED): requirements/$(REQUIREMENTS).txt
	@if [ -L .venv ]; then \
		echo ".venv is a link to $$(readlink .venv), and would be emptied there: remove the link (rm .venv)," \
			"or set up the folder that it names from its own checkout" >&2; exit 2; \
	fi
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
			echo "Setting up .venv with $$($$python --version) from $< (once, some minutes)"; \
			exec $$python -m venv --clear .venv; \
		fi; \
	done; \
	echo "No Python 3.11-3.13 with venv among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." \
		"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2
	$(PY) -m pip install -q --no-compile --constraint $< torch uv
	$(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX="$(PIP_INDEX_URL)") $(PY) -m uv pip install -q --no-deps --requirement $< || \
		$(PY) -m pip install -q --no-compile --no-deps --requirement $<
	@touch $@

# Resolve requirements/*.txt again, keeping what is pinned where it still fits (LOCK=--upgrade renews everything).
LOCK_COMMAND = $(PY) -m uv pip compile pyproject.toml --extra torchrec --extra graph --extra semantic --extra serving --extra experiments --group dev --quiet $(LOCK) \
	--universal --python-version 3.11 --fork-strategy fewest --custom-compile-command "make lock"
lock: $(INSTALLED)
	$(LOCK_COMMAND) --group cpu --override requirements/cpu-overrides.txt --output-file requirements/cpu.txt
	grep -vE '^(torch|torchrec|fbgemm-gpu-cpu|triton)==' requirements/cpu.txt >.venv/shared.txt
	$(LOCK_COMMAND) --group cuda --constraint .venv/shared.txt --output-file requirements/cuda.txt

clean:
	rm -rf .venv .venv-newest .venv-oldest build dist site out .pytest_cache .ruff_cache .hypothesis
