# Two commands do all the set-up: `make replay` and `make test`. `make setup` alone makes .venv.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin

.PHONY: help setup services replay test lint bench clean

help:
	@echo "make replay   environment, install, then a replay of a full focal plane (ARGS='--visits 1 ...' to change it)"
	@echo "make test     environment, lint, types, then every test"
	@echo "make setup    the environment alone, as .venv with apflow in it (PYTHON=... to choose the interpreter)"
	@echo "make services PostgreSQL, Java and Maven from Debian if they are missing, Kafka from Maven Central"
	@echo "make bench    the benchmarks, one JSON line a figure"

setup: $(VENV)/.done

$(VENV)/.done: requirements.txt pyproject.toml
	@python="$$(bash cluster/find_python.sh)" || exit 1; \
	echo "apflow: environment with $$python ($$($$python -V 2>&1))"; \
	$$python -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(BIN)/python -m apflow.operate.warm_up
	@touch $@

services: setup
	@bash cluster/services/install.sh
	@$(BIN)/python -m apflow.operate.services

replay: setup
	$(BIN)/apflow replay --report replay $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint services
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

bench: setup services
	@for b in benchmarks/bench_*.py; do $(BIN)/python $$b --json || exit 1; done

clean:
	rm -rf $(VENV) replay build *.egg-info
