# Two commands for a newcomer: `make demo` and `make test`. Everything lands in .venv and build/, nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/*.c csrc/*.h examples/*.c refusal_edge/_native/*)

.PHONY: demo test test-arm64 lint format bench clean help

help:    ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

demo: $(VENV)/.installed    ## install, convert the embedded demo model, ask it under three policies
	@$(BIN)/refusal-edge demo

test: $(VENV)/.installed-test    ## the whole test suite: Python and C
	$(BIN)/python -m pytest

test-arm64: $(VENV)/.installed-test    ## the C tests on 64-bit Arm under QEMU
	$(BIN)/python -m pytest -rs tests/native/test_native_c.py -k arm64

lint: $(VENV)/.installed-dev    ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h examples/*.c

format: $(VENV)/.installed-dev    ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.c csrc/*.h examples/*.c

bench: $(VENV)/.installed-test    ## the project's own benchmark
	$(BIN)/refusal-edge bench

clean:    ## remove what was built, keep pip's cache of the llama-cpp-python wheel
	@if [ -e '$(VENV)' ] && ! [ -f '$(VENV)/pyvenv.cfg' ]; then echo 'error: $(VENV) is no virtual environment' >&2; exit 2; fi
	rm -rf '$(VENV)' build

# A larger set of extras also counts as the smaller one, so that nothing is installed twice.
$(VENV)/.installed: $(NATIVE)
	@$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@

$(VENV)/.installed-test: $(NATIVE)
	@$(PYTHON) tools/bootstrap.py $(VENV) test
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(NATIVE)
	@$(PYTHON) tools/bootstrap.py $(VENV) dev
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
