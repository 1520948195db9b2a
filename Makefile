# Two commands: `make demo` to see it, `make test` to check it. Each sets up all it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Side by side, as tests wait for processes more than they compute.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: help demo demo-check test lint unit services faults bench messages screenshots clean

help:
	@echo "make demo         the demo project in a browser, with a worker beside it"
	@echo "make demo-check   the demo's main job without a person"
	@echo "make test         lint, types, layers, migrations, the whole test suite"
	@echo "make faults       200 rounds of everything that can break, on both databases and brokers"
	@echo "make bench        how fast it is, beside the peer and bare django-q2"
	@echo "make messages     the catalogues, after a change of texts"
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

# The two databases at the same time.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target unit services

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m django makemigrations --check --dry-run --settings tests.settings.sqlite

unit: $(INSTALLED)
	$(PYTEST) $(ARGS)

# The same promises on the other database and the other broker; what a browser makes of a page depends on neither.
services: $(INSTALLED)
	$(PYTEST) --ds tests.settings.postgresql -m "not markup and not browser"
	$(PYTEST) --ds tests.settings.postgresql_redis -m cluster

# Things are broken at random, for many rounds; the table says what was seen.
faults: $(INSTALLED)
	$(BIN)/python -m tests.faults --rounds $(or $(ROUNDS),200)

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

# The pictures in docs/images, anew. Needs Chromium.
screenshots: $(INSTALLED)
	$(BIN)/python -m tests.demo.screenshots

clean:
	rm -rf $(VENV) .demo build dist

# After a change of texts: bring the catalogues up to date, translate what is new, and run it again to compile them.
messages: $(INSTALLED)
	$(BIN)/python -m django makemessages --settings tests.settings.sqlite --locale de --no-wrap --no-obsolete \
		--add-location file --ignore "tests/*" --ignore "$(VENV)*" --ignore "build/*"
	cd powercrud_dashboard && ../$(BIN)/python -m django compilemessages --locale de
