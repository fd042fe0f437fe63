# The first command on a fresh machine: everything is made in this folder and nothing outside it is touched.
PYTHON ?= python3
PROFILE ?= demo
DATA ?=
VARIANTS ?=
SEEDS ?=
ROW ?= 0
LAB ?=
GRID ?= data/grids/text_rate.yaml
BIN := .venv/bin
CHROMIUM = $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
# What looks at built pages, where there is a browser to look with.
PAGES = $(if $(CHROMIUM),$(BIN)/python -c 'import playwright; import axe_playwright_python' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pages]')
# An option whose value may hold spaces and quotes, and begin with ~/; none where there is no value.
home = $(if $(filter ~/%,$(firstword $(1))),$(subst ~/,$(HOME)/,$(1)),$(1))
option = $(if $(2),--$(1) '$(subst ','\'',$(call home,$(2)))')
DATA_OPTION = $(call option,data,$(DATA))
OPTIONS = $(call option,profile,$(PROFILE)) $(DATA_OPTION) $(call option,variants,$(VARIANTS)) $(call option,seeds,$(SEEDS))

# Modules are compiled when they are first imported, and kept: compiling all of them took pip a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book grid check-result test check-pages pdf lab notebooks clean
.DELETE_ON_ERROR:

book: .venv/installed  ## run every notebook and build the pages (PROFILE=demo, DATA=folder, VARIANTS=…, SEEDS=…)
	@$(BIN)/python -m chestxai.batch $(OPTIONS)
	@$(BIN)/python -m chestxai.book $(OPTIONS)

grid: .venv/installed  ## run the notebooks for a grid of settings and print the scores (GRID=file, DATA=folder)
	@$(BIN)/python -m chestxai.batch $(call option,grid,$(GRID)) $(DATA_OPTION)

check-result: .venv/installed  ## make one row of a study's table again and compare (GRID=file, ROW=number)
	@$(BIN)/python -m chestxai.batch $(call option,grid,$(GRID)) $(call option,check,$(ROW)) $(DATA_OPTION)

test: .venv/installed  ## run the tests
	-@$(PAGES)
	@$(BIN)/python -m pytest -n auto

check-pages: .venv/installed  ## look at the built pages as readers do: phone, dark, keyboard (needs Chromium)
	@$(PAGES)
	@$(BIN)/python tools/check_pages.py _build/html --screenshots _build/screenshots

pdf: .venv/installed  ## print the built pages as _build/book.pdf (needs Chromium)
	@$(BIN)/python tools/print_book.py _build/html _build/book.pdf

lab: .venv/installed  ## open JupyterLab on the notebooks
	@$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(LAB)

notebooks: .venv/installed  ## bring each notebook's two forms in line (the edited one wins; stops where both were)
	@$(BIN)/python tools/sync_notebooks.py

clean:  ## remove what was made, except for the installation
	rm -rf runs _build

# The last package is what the tests compare with; of what it asks for, torchvision would have to match the build of torch,
# and is not used.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing about 200 packages into .venv (2 GB with the CPU build of torch); the first time takes some minutes …"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } || { echo "$(PYTHON) cannot make an environment with pip: install the system's package for it (Debian and Ubuntu: python3-venv, or python3-pip)" >&2; exit 2; }
	@$(BIN)/python -m pip install --progress-bar on --disable-pip-version-check --no-compile -c constraints.txt -e '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps attention-map-diffusers==1.0.0
	@touch $@
