# Two commands for users: `make demo` and `make test`. All that they need is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BROKER ?=
MINUTES ?= 15
SEED ?= 1
COUNT ?= 100
MERMAID := 11.17.2
ROWS ?=
# The extra that a broker's URL needs, where its scheme is called otherwise; two brokers need none
EXTRA_amqp := rabbitmq
EXTRA_amqps := rabbitmq
EXTRA_memory := cli
EXTRA_postgresql := postgres
EXTRA_rediss := redis
EXTRA_sqlite := cli
EXTRA_tls := nats
SCHEME := $(firstword $(subst :, ,$(BROKER)))
EXTRA := $(or $(EXTRA_$(SCHEME)),$(SCHEME))
# Most tests wait, for servers and for timers: six for two cores keep them busy
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(3 * os.cpu_count())')

# The tests start thousands of processes of Python, which read what was compiled once
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check docs reference bench bench-growth bench-far soak sabotage matrix mutants format clean

demo: $(VENV)/.demo $(if $(EXTRA),$(VENV)/.extra-$(EXTRA))  ## audit this Python environment through a broker: make demo [BROKER=postgres://host/database]
	@$(BIN)/things-kit demo $(if $(BROKER),--broker "$(BROKER)")

test: $(VENV)/.dev  ## run the whole suite, on the embedded brokers and on all that can be started here
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -q --durations=30

check: $(VENV)/.dev  ## ruff, mypy, import-linter, dead links in the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/md-dead-link-check
	@$(MAKE) --no-print-directory docs

docs: $(VENV)/.docs docs/javascripts/mermaid.min.js  ## build the documentation into site/, strictly: what is missing is an error
	@$(BIN)/zensical build --strict --clean

reference: $(VENV)/.dev  ## write docs/reference from the code: arguments, commands, configuration
	@$(BIN)/python -m tests.reference

bench: $(VENV)/.dev  ## measure, and write docs/benchmarks.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	@$(BIN)/python -m benchmarks

bench-growth: $(VENV)/.dev  ## what becomes of the speed as a load grows: make bench-growth [ROWS="sqlite redis topics failing"]
	@$(BIN)/python -m benchmarks growth $(ROWS)

bench-far: $(VENV)/.dev  ## what is left of the speed where the broker is in another zone or region: make bench-far [ROWS="redis nats"]
	@$(BIN)/python -m benchmarks far $(ROWS)

soak: $(VENV)/.dev  ## use a broker, break all around it, see whether it keeps its promises: make soak [BROKER=kafka] [MINUTES=15] [SEED=1]
	@$(BIN)/python -m things_kit.testing.soak --broker "$(or $(BROKER),sqlite)" --minutes $(MINUTES) --seed $(SEED)

sabotage: $(VENV)/.dev  ## plant faults into the library, and see that the soak names each
	@$(BIN)/python -m tests.soak

matrix: $(VENV)/.dev  ## run the suite against newer servers and Pythons, and write docs/compatibility.md: make matrix [ROWS="redis-8 python-3.14"]
	@WORKERS=$(WORKERS) $(BIN)/python -m tests.matrix $(ROWS)

mutants: $(VENV)/.dev  ## plant mutants into what decides in the engine, and list those that no test finds: make mutants [COUNT=100] [SEED=1]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group mutants
	@$(BIN)/python -m tests.mutants --count $(COUNT) --seed $(SEED)

format: $(VENV)/.dev  ## let ruff put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what the other targets made
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Say which: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cli,kafka]"
	@touch $@

$(VENV)/.extra-%: $(VENV)/.demo
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the test tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[app,cli,kafka,nats,ops,otel,postgres,pubsub,rabbitmq,redis,reload,s3,servicebus,sqs]" --group dev
	@touch $@ $(VENV)/.demo

docs/javascripts/mermaid.min.js:  # the site's own, so that its pages need no other host; without npm diagrams stay text
	@folder=$$(mktemp -d) && cd $$folder && npm pack --silent mermaid@$(MERMAID) >/dev/null && tar xzf *.tgz package/dist/mermaid.min.js \
		&& cp package/dist/mermaid.min.js $(CURDIR)/$@ || echo "npm cannot fetch Mermaid: diagrams stay text"; rm -rf "$$folder"

$(VENV)/.docs: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@
