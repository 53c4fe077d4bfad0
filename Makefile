# Each target prepares .venv by itself; on a bare Debian or Ubuntu machine nothing else is needed.
# Another interpreter: make PYTHON=/path/to/python3.12 test
PYTHON ?= python3
BIN := .venv/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo screen test screenshots docs lint format wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

setup: ## make or refresh .venv
	@bash scripts/bootstrap.sh

demo: setup ## the guided tour; writes demo/index.html
	$(BIN)/s2dc demo --out demo

screen:
	@bash scripts/bootstrap.sh --with-screen

# The pictures are made on a virtual screen where there is no other.
SCREEN = $(if $(DISPLAY),,xvfb-run --auto-servernum --server-args="-screen 0 1920x1200x24")

test: lint screen ## every check and every test
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

screenshots: setup screen ## make the pictures of docs/ anew
	$(SCREEN) $(BIN)/python docs/make_screenshots.py
	$(SCREEN) $(BIN)/python docs/make_match_screenshots.py
	$(SCREEN) $(BIN)/python docs/make_segment_screenshots.py

docs: setup ## build the site of docs/ into site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup ## style, types, import rules and the napari manifest
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/lint-imports --no-cache
	$(BIN)/npe2 validate napari-s2dc

format: setup ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: setup ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove everything that was built, .venv included
	rm -rf .venv demo dist build site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
