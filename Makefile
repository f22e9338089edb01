# Two commands on a fresh machine with git, make and Python 3.11 or later:
#   make demo   draws a picture with the bundled model in FP8
#   make test   runs the CPU suite

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Processes that run the tests, of one thread each; many tests wait for a server or a clock.
JOBS ?= 2

SERVERS := build/servers

.PHONY: demo test test-servers check clean

demo: $(VENV)/installed
	$(BIN)/sd35 generate "a red apple, glossy style, on a blue background" --seed 1

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-servers: $(VENV)/installed-dev $(VENV)/installed-servers $(SERVERS)/olah/installed $(SERVERS)/giftless/installed
	$(BIN)/python scripts/test_servers.py

check: $(VENV)/installed-dev
	sh scripts/check

clean:
	rm -rf $(VENV) build dist

# torch first and by its exact version: a range would let pip look for something newer.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sd35 needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[serve]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev,compare,train,serve,otel]'
	touch $@

$(VENV)/installed-servers: $(VENV)/installed-dev
	$(PIP) --editable '.[test-servers,serve-postgresql]'
	touch $@

# Servers that tests talk to live in environments of their own: none of it is a dependency of ours.
$(SERVERS)/%/installed: scripts/servers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@
