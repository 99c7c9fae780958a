# The commands of a checkout. `make` lists them. Set PYTHON=/path/to/python to choose the
# interpreter, and PIP_EXTRA_INDEX_URL as README.md says to get the CPU-only torch on Linux.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS := --disable-pip-version-check $(if $(CI),--quiet)
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PACKAGING := settings.ini setup.py pyproject.toml constraints.txt
.DEFAULT_GOAL := help
.PHONY: help course lab chapter check export format lint test test-notebooks test-python test-site \
	test-all test-lowest test-newest bench bench-memory docs docs-serve readme verify constraints \
	clean distclean

help: ## list the commands
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1|/p' Makefile | \
	awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'

# $(call find_python,names): sets $$python to the first interpreter that is new enough and can make
# environments.
ANY_PYTHON := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
define find_python
python=; seen=; \
for name in $(1); do \
  command -v "$$name" >/dev/null 2>&1 || continue; \
  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
  { python=$$name; break; }; \
  seen="$$seen $$("$$name" --version 2>&1 | head -n 1) ($$name);"; \
done; \
if [ -z "$$python" ]; then \
  echo "ponderlearn needs Python 3.11 or later; found:$${seen:- no Python}" >&2; \
  echo "Install one, then say which: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; \
fi; \
if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
  echo "$$python has no venv module, which makes the environment in $(VENV)." >&2; \
  echo "On Debian and Ubuntu: apt install python3-venv. Elsewhere: Python from python.org." \
  >&2; exit 1; \
fi
endef

$(BIN)/python:
	@$(call find_python,$(ANY_PYTHON)); \
	echo "Making $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV)

$(VENV)/.lab: $(PACKAGING) | $(BIN)/python
	@echo "Installing the course into $(VENV); the first time downloads PyTorch and Jupyter"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.dev: $(PACKAGING) | $(BIN)/python
	@echo "Installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.lab $@

course: $(VENV)/.lab ## install, then execute the chapter on PonderNet at the scale quick
	@$(BIN)/ponderlearn run pondernet --scale quick

lab: $(VENV)/.lab ## open the course in JupyterLab
	@$(BIN)/ponderlearn lab

chapter: $(VENV)/.dev ## write the files of a new chapter from its row in the catalogue: NAME=act
	@$(BIN)/python tools/chapter.py new $(NAME)

check: $(VENV)/.dev ## export, style, quick run, tests and page of one notebook: NAME=act
	@$(BIN)/python tools/chapter.py check $(NAME)

export: $(VENV)/.dev ## write the modules from the notebooks, and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

format: $(VENV)/.dev ## ruff's layout for notebooks, tests, docs and benchmarks
	@$(BIN)/ruff format .

lint: $(VENV)/.dev ## ruff's rules and layout
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format export" >&2; exit 1; }

test: $(VENV)/.dev ## all tests: notebooks at quick, pytest, and the site where it can be built
	@$(MAKE) --no-print-directory test-notebooks test-python test-site

test-notebooks: $(VENV)/.dev ## every notebook at quick, two at a time; over 20 s of CPU time fails
	@echo "Notebooks at quick"
	@$(BIN)/python tools/notebooks.py

# One file is one process's: what its tests share is made once.
test-python: $(VENV)/.dev ## pytest in two processes, without the slow marks and the browser
	@$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not browser"

test-site: $(VENV)/.dev ## build the site and test it in Chromium
	@if ! command -v npm >/dev/null; then echo "The site was not tested: it needs npm (Node.js)"; \
	elif ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && \
	! command -v google-chrome >/dev/null; then echo "The site was not tested: it needs Chromium"; \
	else $(MAKE) --no-print-directory docs && \
	$(BIN)/python -m pytest -n 2 -m "browser and not slow" tests/site && \
	$(BIN)/python -m pytest -m "browser and not slow" --ignore tests/site; fi

test-all: test ## what a release needs too: slow tests, lowest and newest versions
	@$(BIN)/python -m pytest -m "slow"
	@$(MAKE) --no-print-directory test-lowest test-newest

# Without nbdev and the packaging tools, and therefore without the tests of the command line and of
# packaging; instead of them the first chapter is executed. The lowest versions have no wheels for
# Python 3.13 and later.
VERSIONS_TEST = -m pytest -n 2 --dist loadfile -m "not slow and not browser" \
	--ignore tests/test_cli.py --ignore tests/test_packaging.py --ignore tests/test_chapters.py

test-lowest: ## pytest and the first chapter with the lowest versions that settings.ini allows
	@[ -x .venv-lowest/bin/python ] || { $(call find_python,$(or $(PYTHON),python3.11 python3.12)); \
	"$$python" -m venv .venv-lowest; }
	@.venv-lowest/bin/python tools/lowest.py > .venv-lowest/constraints.txt
	@.venv-lowest/bin/python -m pip install $(PIP_FLAGS) -c .venv-lowest/constraints.txt \
	--no-deps torch
	@.venv-lowest/bin/python tools/lowest.py no-cuda
	@.venv-lowest/bin/python -m pip install $(PIP_FLAGS) -c .venv-lowest/constraints.txt -e '.[lab]' \
	pytest pytest-xdist hypothesis
	@$(ONE_THREAD) .venv-lowest/bin/python $(VERSIONS_TEST)
	@$(ONE_THREAD) .venv-lowest/bin/ponderlearn run act --scale quick --out _runs/act-lowest

test-newest: ## pytest and the first chapter with the newest versions on the package index
	@[ -x .venv-newest/bin/python ] || { $(call find_python,$(ANY_PYTHON)); \
	"$$python" -m venv .venv-newest; }
	@.venv-newest/bin/python -m pip install $(PIP_FLAGS) --upgrade --no-deps torch
	@.venv-newest/bin/python tools/lowest.py no-cuda
	@.venv-newest/bin/python -m pip install $(PIP_FLAGS) --upgrade --upgrade-strategy eager \
	-e '.[lab]' pytest pytest-xdist hypothesis
	@$(ONE_THREAD) .venv-newest/bin/python $(VERSIONS_TEST)
	@$(ONE_THREAD) .venv-newest/bin/ponderlearn run act --scale quick --out _runs/act-newest

.venv-bench/.bench: $(PACKAGING) benchmarks/requirements.txt
	@[ -x .venv-bench/bin/python ] || { $(call find_python,$(ANY_PYTHON)); \
	"$$python" -m venv .venv-bench; }
	@.venv-bench/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[course]'
	@.venv-bench/bin/python -m pip install $(PIP_FLAGS) --no-deps -r benchmarks/requirements.txt
	@touch $@

# One script that fails does not keep the others from running.
bench: .venv-bench/.bench ## each method beside its best peer; writes results/bench-*.json
	@failed=; for script in $(filter-out benchmarks/compare.py,$(wildcard benchmarks/*.py)); do \
	echo "$$script"; .venv-bench/bin/python "$$script" || failed="$$failed $$script"; done; \
	[ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

bench-memory: ## the same, but only the memory, written beside the times that are stored
	@BENCH_MEMORY=1 $(MAKE) --no-print-directory bench

docs: $(VENV)/.dev ## build the site into docs/_build
	@command -v npm >/dev/null || { \
	echo "The site needs npm (Node.js): it brings MathJax, RequireJS, widgets and fonts." >&2; \
	echo "On Debian and Ubuntu: apt install npm. Elsewhere: nodejs.org. The course needs none." >&2; \
	exit 1; }
	@[ docs/node_modules/.package-lock.json -nt docs/package-lock.json ] || \
	{ cd docs && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; }
	@$(BIN)/python docs/vendor.py
	@$(BIN)/sphinx-build -q -W --keep-going -c docs -d docs/.cache/doctrees . docs/_build
	@echo "The site is in docs/_build: open docs/_build/index.html, or make docs-serve"

docs-serve: docs ## show the site on this machine alone, at http://127.0.0.1:8000
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory docs/_build 8000

readme: $(VENV)/.dev ## make README.md from index.ipynb, and its picture from results/
	@$(BIN)/python docs/_ext/held.py
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace index.ipynb
	@$(BIN)/nbdev_clean --fname index.ipynb
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --no-input --output README.md \
	index.ipynb

# Each chapter is committed as soon as it is verified: a second call goes on where one was killed.
verify: $(VENV)/.dev ## run chapters whose code changed again; where all claims are equal, commit
	@failed=; stale=$$($(BIN)/ponderlearn results --stale | sed -n 's/: changed since its run.*//p'); \
	for name in $$stale; do \
	$(BIN)/ponderlearn run $$name --scale full --verify; status=$$?; \
	if [ $$status -gt 128 ]; then exit $$status; fi; \
	if [ $$status -ne 0 ]; then failed="$$failed $$name"; continue; fi; \
	files=$$(ls nbs/*/[0-9][0-9]_$$name.ipynb results/$$name.json 2>/dev/null); \
	git add $$files && git commit -q -m "Verified again: $$name" -- $$files || exit 1; done; \
	[ -z "$$failed" ] || { echo "Not verified:$$failed" >&2; exit 1; }

constraints: $(VENV)/.dev ## write the installed versions to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	$(BIN)/python -m pip freeze --exclude ponderlearn | sed 's/+[a-z0-9.]*$$//'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean: ## remove what tests, builds and runs leave; environments stay
	@rm -rf build dist *.egg-info _runs _proc .pytest_cache .ruff_cache .hypothesis
	@rm -rf docs/_build docs/.cache docs/api docs/_static/vendor docs/node_modules
	@find . -name '.venv*' -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -print | \
	xargs rm -rf

distclean: clean ## remove the environments too
	@rm -rf .venv .venv-lowest .venv-newest .venv-bench
