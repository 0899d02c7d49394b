# Two commands for newcomers, make demo and make test; each makes all it needs. One command here = CI.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WLM ?= local
WORKERS ?= 2# at once; each starts services of its own, and mostly waits for them
SOURCES := $(shell git ls-files -co --exclude-standard -- adapters execute_batch_scheduler execute_cell.py build_tools 2>/dev/null) setup.py pyproject.toml README.md
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test quick lint types unit services clean
help:
	@echo 'make demo              a cell in IPython, on this machine'
	@echo 'make demo WLM=slurm    the same on a private real Slurm, which is started and stopped'
	@echo 'make demo WLM=ssh      the same by a private real sshd'
	@echo 'make test              everything CI does: lint, types, tests against real services'
	@echo 'make quick             lint, types and unit tests, in seconds'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package is installed as a user would have it; tests run against that, not against the checkout.
$(VENV)/installed: $(BIN)/python $(SOURCES)
	@rm -rf build ./*.egg-info
	@$(BIN)/python -c 'import psij, IPython, ruff, pytest, xdist, pytest_rerunfailures, submitit, asyncssh' 2>/dev/null || $(BIN)/pip install -q '.[test]'
	@$(BIN)/pip install -q --force-reinstall --no-deps .
	@rm -rf build ./*.egg-info
	@touch $@

demo: $(VENV)/installed
	@case "$(WLM)" in local) ;; slurm|ssh) tests/services/install.sh $(WLM) ;; \
	  *) echo 'make demo shows WLM=local, WLM=slurm or WLM=ssh'; exit 2 ;; esac
	@$(BIN)/python tests/demo.py $(WLM)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p execute_batch_scheduler

unit: $(VENV)/installed
	$(BIN)/pytest -q tests/unit

quick: lint types unit

services:
	@tests/services/install.sh slurm accounting ssh

test: services lint types
	$(BIN)/pip check
	$(BIN)/pytest tests -n $(WORKERS) --dist loadscope -rRfE --durations=25 --cov --cov-report=term:skip-covered
	@tests/services/install.sh --missing slurm accounting ssh

clean:
	rm -rf $(VENV) build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
