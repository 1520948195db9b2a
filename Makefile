# Two commands: `make demo` to see it, `make test` to check it. Each sets up all it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Side by side, as tests wait for processes more than they compute.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal
# Those of the catalogues.
LANGUAGES := de es fr

.PHONY: help demo demo-check test lint unit clusters postgresql services matrix powercrud faults hosts bench docs reference messages screenshots clean

help:
	@echo "make demo         the demo project in a browser, with a worker beside it"
	@echo "make demo-check   the demo's main job without a person"
	@echo "make test         lint, types, layers, migrations, the whole test suite on SQLite, real clusters on PostgreSQL"
	@echo "make postgresql   the suite on PostgreSQL"
	@echo "make services     faults, Redis, local times, and beside other packages of the admin"
	@echo "make matrix       a part of the tests on each Python, Django, database and broker, and with the oldest dependencies"
	@echo "make powercrud    tests with the views of django-powercrud, on Python 3.12 or newer"
	@echo "make faults       200 rounds of everything that can break, on both databases and brokers"
	@echo "make hosts        two web hosts and two worker hosts: one cut off, clocks apart, a rolling deploy"
	@echo "make bench        how fast it is, beside the peer and bare django-q2"
	@echo "make messages     the catalogues of all LANGUAGES, after a change of texts"
	@echo "make docs         the documentation as a site, in build/docs"
	@echo "make reference    the pages of the documentation that are made from the code"
	@echo "make screenshots  the documentation's pictures"

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/python -m tests.demo.run

demo-check: $(INSTALLED)
	@$(BIN)/python -m tests.demo.check

# What can be said without a test, the whole suite on SQLite, and what real clusters do on PostgreSQL, at the same time.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target lint unit clusters

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m django makemigrations --check --dry-run --settings tests.settings.sqlite

unit: $(INSTALLED)
	$(PYTEST) --numprocesses 3 -m "not faults" $(ARGS)

clusters: $(INSTALLED)
	$(PYTEST) --ds tests.settings.postgresql -m "cluster and not faults"

# What depends on time, for local times in the place of aware ones.
TIMES := $(addprefix tests/unit/test_,checks.py cleanup.py cleanup_faults.py failures.py filters.py locks.py paging.py processes.py \
	progress.py refresh.py retry_policy.py worker.py worker_unrecorded_ends.py)

# The same promises on the other database. What a browser makes of a page does not depend on it.
postgresql: $(INSTALLED)
	$(PYTEST) --ds tests.settings.postgresql -m "not (faults or cluster or markup or browser)" $(ARGS)

# What else is true: some rounds of faults, the other broker, local times, and the packages that change the admin.
services: $(INSTALLED)
	$(PYTEST) -m faults
	$(PYTEST) --ds tests.settings.postgresql -m faults
	$(PYTEST) --ds tests.settings.postgresql_redis -m "cluster and not faults"
	$(PYTEST) --ds tests.settings.sqlite_local_time $(TIMES)
	$(PYTEST) --ds tests.settings.postgresql_local_time $(TIMES)
	$(PYTEST) --ds tests.settings.neighbours tests/neighbours
	$(PYTEST) --ds tests.settings.unfold tests/browser/test_themes.py
	$(PYTEST) --ds tests.settings.jazzmin tests/browser/test_themes.py

# Each Python, Django, database and broker, and the oldest dependencies. Pythons that are missing are named.
matrix: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group matrix
	$(BIN)/nox $(ARGS)

# Things are broken at random, for many rounds; the table says what was seen.
faults: $(INSTALLED)
	$(BIN)/python -m tests.faults --rounds $(or $(ROUNDS),200)

# As docs/several-hosts.md sets them up. PREVIOUS is the release to begin with, such as a tag; by default this one.
hosts: $(INSTALLED)
	$(BIN)/python -m tests.faults.several_hosts $(PREVIOUS:%=--previous %)

# The peer needs Python 3.12 or newer; an environment of its own keeps it out of the tests. pyenv has commands under these
# names also for Pythons that are not chosen: only trying tells.
BENCH_PYTHON ?= $(shell for python in python3.13 python3.12; do $$python -c "" 2>/dev/null && command -v $$python && exit; done; \
	PYENV_VERSION=$$(pyenv latest 3.13) pyenv which python)
BENCH := .venv-bench

bench:
	@test -x $(BENCH)/bin/python || $(BENCH_PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/python -m pip install --quiet --editable . --group bench
	$(BENCH)/bin/python -m tests.benchmarks.bench --json build/benchmarks.json $(ARGS)

# The views of the real django-powercrud on this package.
POWERCRUD := .venv-powercrud

powercrud:
	@test -x $(POWERCRUD)/bin/python || $(BENCH_PYTHON) -m venv $(POWERCRUD)
	$(POWERCRUD)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(POWERCRUD)/bin/python -m pip install --quiet --editable . --group powercrud
	$(POWERCRUD)/bin/pytest --numprocesses 2 --dist worksteal --ds tests.settings.powercrud tests/powercrud $(ARGS)
	$(POWERCRUD)/bin/pytest --numprocesses 2 --dist worksteal --ds tests.settings.powercrud_postgresql tests/powercrud $(ARGS)

# The site. Warnings are errors: links that lead nowhere, pages that no list names, names that do not exist.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --doctree-dir build/doctrees docs build/docs
	@echo "build/docs/index.html"

# The pages about settings, checks, URLs and templates, anew, after a change of these.
reference: $(INSTALLED)
	PYTHONPATH=. $(BIN)/python docs/generate.py

# The pictures in docs/images, anew. Needs Chromium.
screenshots: $(INSTALLED)
	$(BIN)/python -m tests.demo.screenshots
	$(BIN)/python -m tests.demo.screenshots --theme unfold
	$(BIN)/python -m tests.demo.screenshots --theme jazzmin

clean:
	rm -rf $(VENV) .demo build dist

# After a change of texts: bring the catalogues up to date, translate what is new, and run it again to compile them.
messages: $(INSTALLED)
	$(BIN)/python -m django makemessages --settings tests.settings.sqlite $(LANGUAGES:%=--locale %) --no-wrap --no-obsolete \
		--add-location file --ignore "tests/*" --ignore "$(VENV)*" --ignore "build/*"
	cd powercrud_dashboard && $(abspath $(BIN))/python -m django compilemessages $(LANGUAGES:%=--locale %)
