# A fresh machine needs Python 3.10 or newer with venv, and make. Everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
# Two pips in one environment get in each other's way, and tests use all cores by themselves.
.NOTPARALLEL:
.PHONY: help install quickstart demo notebooks notebooks-open test test-slow test-gpu test-demo lint docs docs-serve clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Make the environment in .venv, with all that the programs need

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[train]"
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[train,test]"
# Tests compare losses with lightly's. These need nothing of what the package asks for, such as PyTorch Lightning.
	$(BIN)/python -m pip install --quiet --no-deps "lightly>=1.6.0"
	@touch $@

# One thread for each of its two processes: a small model gains little from several.
quickstart: install ## Pretrain on the built-in digits, fine-tune, compare; minutes on a CPU
	OMP_NUM_THREADS=1 $(BIN)/modeling-sit quickstart

$(VENV)/installed-for-notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[train,detection,notebooks]"
	@touch $@

notebooks: $(VENV)/installed-for-notebooks ## Run every notebook, and write it with its figures to outputs/notebooks
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --execute --to html --output-dir outputs/notebooks notebooks/*.ipynb

notebooks-open: $(VENV)/installed-for-notebooks ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

# One thread a worker: workers that each use all cores get in one another's way. Each worker has half of the files, and takes
# tests of the other's when it is done: so most fixtures of a file are made in one worker only.
test: $(VENV)/installed-for-tests ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not browser"

test-slow: $(VENV)/installed-for-tests ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

# One process: what a test measures of the GPU's memory is its own.
test-gpu: $(VENV)/installed-for-tests ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu -n 0

# An environment of its own, for gradio holds back the release of Pillow that the tests run with. It sees the packages of $(VENV)
# behind its own, pip among them: what is there already is not installed a second time.
$(VENV)-demo/installed: $(VENV)/installed
	$(BIN)/python -m venv --clear --without-pip $(VENV)-demo
	packages='import sysconfig; print(sysconfig.get_path("purelib"))' \
		&& $(BIN)/python -c "$$packages" >"$$($(VENV)-demo/bin/python -c "$$packages")/packages_of_other.pth"
	$(VENV)-demo/bin/python -m pip install --quiet --no-warn-conflicts --editable ".[demo]"
	@touch $@

outputs/quickstart/results.md:
	$(MAKE) quickstart

demo: $(VENV)-demo/installed outputs/quickstart/results.md ## Open a page in the browser on what the quickstart learned
	$(VENV)-demo/bin/modeling-sit demo outputs/quickstart/pretrained --dataset digits

# Of lightly, pip knows that it is there without what it asks for.
$(VENV)-demo/installed-for-tests: $(VENV)-demo/installed $(VENV)/installed-for-tests
	$(VENV)-demo/bin/python -m pip install --quiet --no-warn-conflicts --editable ".[demo,browser]"
# A browser that the system has is enough. A download may wait for a host that does not answer.
	for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; \
		$(if $(shell command -v timeout),timeout 120) $(VENV)-demo/bin/playwright install chromium \
		|| echo "There is no Chromium, and it cannot be downloaded: the tests in a browser are skipped."
	@touch $@

test-demo: $(VENV)-demo/installed-for-tests ## Run the tests of the demo, also in a browser
	OMP_NUM_THREADS=1 $(VENV)-demo/bin/python -m pytest tests/demo -n 2 -m "not slow"

lint: $(VENV)/installed-for-tests ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/installed-for-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[train,docs]"
	@touch $@

docs docs-serve: export NO_MKDOCS_2_WARNING := 1

docs: $(VENV)/installed-for-docs ## Build the docs as a site, in site/
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/installed-for-docs ## Show the docs at http://127.0.0.1:8000 while you write
	$(BIN)/mkdocs serve --strict --livereload

clean: ## Remove the environment and what was made
	rm -rf $(VENV) $(VENV)-demo outputs notebooks/outputs site build dist *.egg-info
