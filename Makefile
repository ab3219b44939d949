# `make help` lists the targets. Each makes the environment first if it is missing or out of date.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN := $(VENV)/.installed-train

# Passed on to the command of a target, and to pip. On Linux a plain torch brings CUDA; an index of CPU builds avoids that:
#   make demo PIP_FLAGS="--extra-index-url URL_OF_A_CPU_INDEX"
ARGS ?=
PIP_FLAGS ?=

# The first Python that is new enough. Another: make demo PYTHON=/path/to/python3.12
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
OLD_ENOUGH := import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c '$(OLD_ENOUGH)' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)

# What is imported is compiled once and kept, whatever the shell says: the tests start some hundred processes. So pip need
# not compile (--no-compile) what nobody will import, which is most of what it installs.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lab docs browse coverage mutants soak clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do printf '  make %-9s %s\n' "$$t" "$$d"; done
	@echo '  ARGS="..." is passed on by demo, test, lab, browse, mutants and soak; PYTHON=... chooses the interpreter; PIP_FLAGS="..." goes to pip.'

# $(call install,EXTRA): the environment, if it is not there, and the package with one of its extras. The pip that comes
# with Python is as old as it: a new one needs a third of the time for what follows.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -qq
define install
	@python="$(PYTHON)"; \
	$$python -c '$(OLD_ENOUGH)' || { echo "Python $(MIN_PYTHON) or newer is needed, and $$python is $$($$python --version 2>&1)." \
		"Name one: make PYTHON=/path/to/python$(MIN_PYTHON)" >&2; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV); }
	@echo "Installing itnet[$(1)] into $(VENV): a few minutes the first time, and up to 2.6 GB, several more where torch comes with CUDA (PIP_FLAGS)"
	@$(PIP) --upgrade $(PIP_FLAGS) pip || echo "Going on with the pip that came with Python, which is slower"
	@$(PIP) $(PIP_FLAGS) -c constraints.txt -e '.[$(1)]'
endef

# What most tests import is compiled here by two processes, and not by each of the first ones that run at the same time.
COMPILE := $(BIN)/python -c "import lightning.pytorch, torch._dynamo" & \
	$(BIN)/python -c "import datasets, matplotlib.pyplot, nbdev.test, pandas, scipy.stats, sklearn.datasets, sympy" & wait

# A stamp is the last thing written, so an installation that fails or is interrupted is done again.
DESCRIBED := settings.ini setup.py pyproject.toml constraints.txt
$(STAMP): $(DESCRIBED)
	@rm -f $@
	$(call install,dev)
	@$(COMPILE)
	@$(BIN)/python tools/hooks.py
	@touch $@

# What a demonstration needs is less, and in the environment of development already.
$(TRAIN): $(DESCRIBED)
	@rm -f $@
	$(if $(shell [ -e $(STAMP) ] && [ -z "$$(find $(DESCRIBED) -newer $(STAMP))" ] && echo there),,$(call install,train))
	@touch $@

install: $(STAMP)  ## make .venv and install the package with its development tools

demo: $(TRAIN)  ## train and compare one architecture on three domains
	@$(BIN)/itnet demo $(ARGS)

test: $(STAMP)  ## drift check, notebooks, tests, site and browser, each once
	@$(BIN)/python tools/test.py $(ARGS)

lab: $(STAMP)  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs/index.ipynb $(ARGS)

docs: $(STAMP)  ## build the site into _docs/ and README.md from the index notebook
	@$(BIN)/python tools/build_site.py

browse: $(STAMP)  ## look at pages of the site and at notebooks in JupyterLab, in a headless Chromium
	@$(BIN)/python tools/browse.py $(ARGS)

coverage: $(STAMP)  ## how much of itnet/ the notebooks' tests reach
	@$(BIN)/coverage run --source itnet tools/pkgcov.py && $(BIN)/coverage report --skip-covered

mutants: $(STAMP)  ## plant mistakes in a copy of the code: the tests have to find each of them
	@$(BIN)/python tools/mutants.py $(ARGS)

soak: $(STAMP)  ## train for 20 minutes, or ARGS=5: neither memory nor open files may grow
	@$(BIN)/python tools/soak.py $(ARGS)

clean:  ## remove what was built, but not .venv
	@rm -rf _docs _proc build dist .coverage .pytest_cache .hypothesis nbs/nbdev.yml *.egg-info
	@find itnet nbs tests tools -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
