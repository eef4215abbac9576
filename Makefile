# You install nothing by hand: scripts/uv finds or downloads uv, and uv installs what uv.lock names into .venv.
# uv stops with an error when uv.lock does not match pyproject.toml (--locked). It never changes the lock by itself.
# ARGS passes more arguments to a command: make run ARGS="--port 9000", make test ARGS="tests/laws -k L7".

UV := scripts/uv
RUN := $(UV) run --locked

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run stack image test check lock format lint types imports coverage mutate fix bench audit sbom

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# Without --exact, uv run adds missing packages and removes none. So this target keeps the development tools.
run: ## Start the service on this machine with SQLite.
	$(RUN) --no-dev credit-service serve $(ARGS)

stack: ## Start two services on PostgreSQL, NATS and Valkey without Docker; Ctrl-C stops everything.
	$(RUN) python -m scripts.stack $(ARGS)

image: ## Build the Docker image credit-service.
	docker build --file deploy/Dockerfile --tag credit-service $(ARGS) .

test: ## Run the whole test suite, in parallel.
	$(RUN) pytest -q -n auto --dist worksteal $(ARGS)

check: lock format lint types imports test coverage mutate ## Run everything that CI runs: quality checks and tests.
	@echo "make check: all checks passed"

lock: ## Check that uv.lock matches pyproject.toml.
	$(UV) lock --check

format: ## Check that the code is formatted.
	$(RUN) ruff format --check

lint: ## Check the code against the rules of ruff.
	$(RUN) ruff check

types: ## Check the types with mypy.
	$(RUN) mypy

imports: ## Check that each layer imports only layers below it.
	$(RUN) lint-imports --no-logo

coverage: ## Check that the tests cover every branch of the ledger and of posting.
	$(RUN) coverage erase
	$(RUN) coverage run -m pytest -q -n auto tests/ledger tests/laws tests/posting tests/storage/test_sqlite.py
	$(RUN) coverage combine --quiet
	$(RUN) coverage report

# Each run starts from nothing, because the result of a mutant depends on the tests too. It takes four minutes on two
# idle cores.
mutate: ## Make 1,700 single changes to the ledger and check that a test fails for each.
	$(RUN) python -m scripts.mutants

fix: ## Format the code and apply the automatic fixes of ruff.
	$(RUN) ruff check --fix
	$(RUN) ruff format

bench: ## Run the benchmarks and print their ratios.
	$(RUN) python -m benchmarks $(ARGS)

# This target asks a public database of vulnerabilities. It is not part of check, because a new entry in that database
# must not fail an unrelated change.
audit: ## Look up known vulnerabilities of the dependencies.
	$(UV) audit --locked --no-dev

sbom: ## Write sbom.json, the list of all dependencies (CycloneDX).
	$(UV) export --quiet --locked --no-dev --format cyclonedx1.5 --output-file sbom.json
