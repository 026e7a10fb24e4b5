# `make demo` counts the sample smears, `make test` runs the checks and tests; both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/smearcount analyze sample_smears/*.jpg --out smearcount_out
	@echo "Look at smearcount_out/*.overlay.jpg"

check: $(VENV)/.ready
	$(BIN)/ruff check smearcount tests
	$(BIN)/ruff format --check smearcount tests
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) smearcount_out build dist
