# Nothing needs installing by hand: scripts/uv finds or fetches uv, and uv brings .venv in line with uv.lock.
# A lock that no longer fits pyproject.toml is an error (--locked), never silently renewed.
# Pass more to a command with ARGS: make run ARGS="--port 9000", make test ARGS="tests/laws -k L7".

UV := scripts/uv
RUN := $(UV) run --locked

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run stack image test check lock format lint types imports coverage mutate fix bench audit sbom

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# uv run adds what is missing and removes nothing, so without --exact this never takes the development tools away.
run: ## Start the service on this machine, with SQLite and nothing else to install.
	$(RUN) --no-dev credit-service serve $(ARGS)

stack: ## Start two services on PostgreSQL, NATS and Valkey, without Docker; Ctrl-C ends it all.
	$(RUN) python -m scripts.stack $(ARGS)

image: ## Build the image credit-service with Docker.
	docker build --file deploy/Dockerfile --tag credit-service $(ARGS) .

test: ## Run the whole test suite, in parallel.
	$(RUN) pytest -q -n auto $(ARGS)

check: lock format lint types imports coverage mutate ## Run every quality gate that CI runs.
	@echo "make check: all gates passed"

lock: ## Check that uv.lock fits pyproject.toml.
	$(UV) lock --check

format: ## Check that the code is formatted.
	$(RUN) ruff format --check

lint: ## Check the code with ruff's rules.
	$(RUN) ruff check

types: ## Check the types with mypy.
	$(RUN) mypy

imports: ## Check that each layer imports only what lies below it.
	$(RUN) lint-imports --no-logo

coverage: ## Run the tests and demand that they take every branch of the ledger and of posting.
	$(RUN) coverage erase
	$(RUN) coverage run -m pytest -q -n auto tests/ledger tests/laws tests/posting tests/storage/test_sqlite.py
	$(RUN) coverage combine --quiet
	$(RUN) coverage report

# Starts anew every time, since what a mutant came to depends on the tests, too: four minutes on two idle cores.
mutate: ## Change the ledger in 1,700 ways, one at a time, and demand that a test fails for each.
	$(RUN) python -m scripts.mutants

fix: ## Format the code and repair what ruff can repair by itself.
	$(RUN) ruff check --fix
	$(RUN) ruff format

bench: ## Run the benchmarks and print their ratios.
	$(RUN) python -m benchmarks $(ARGS)

# Asks a public database of vulnerabilities, so it is no part of check: that must not fail for what others publish.
audit: ## Look up known vulnerabilities of what the service depends on.
	$(UV) audit --locked --no-dev

sbom: ## Write sbom.json, what the service is made of (CycloneDX).
	$(UV) export --quiet --locked --no-dev --format cyclonedx1.5 --output-file sbom.json
