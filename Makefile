# make demo: the main job on this machine. make test: the default tests. Both create the environment first.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
BIN := .venv/bin
RUN_IN_PARALLEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long reproduce test-cluster chaos mutants check docs docs-serve chart rest control-plane images format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

venv: .venv/installed  ## create the environment in .venv

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "foldwise needs Python 3.11 or newer: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: venv  ## run the whole job on synthetic faces, about two minutes; ARGS="--new" starts another study
	$(BIN)/foldwise demo $(ARGS)

test: venv  ## run the default tests, under 8 minutes on 2 cores
	$(BIN)/pytest -n $(RUN_IN_PARALLEL) -m "not long and not cluster" tests

test-long: venv  ## run the slow tests
	$(BIN)/pytest -m long tests

reproduce: venv  ## type the commands of docs/reproduce.md on drawn faces, half an hour; tables and figures in build/reproduce
	$(BIN)/python -m tests.reproduction.run $(ARGS)

test-cluster: venv  ## test the chart, studies and faults on a real Kubernetes: that of KUBECONFIG, or one that it starts
	tests/cluster/run

SEEDS ?= 20
chaos: venv  ## kill processes and databases under load and count what is lost; SEEDS=20 repetitions; ARGS=--digests compares with a calm run
	$(BIN)/python -m tests.chaos.run --seeds $(SEEDS) $(ARGS)

mutants: venv  ## remove each safeguard of the protocol in turn; the tests must fail every time
	$(BIN)/python -m tests.mutants

check: venv docs  ## check formatting, lint, types, import contracts and the documentation's links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without the variable the theme prints a notice about MkDocs 2 and its own successor.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: venv  ## build the documentation into site/; a broken link or anchor is an error
	$(BIN)/mkdocs build --strict --quiet

docs-serve: venv  ## the documentation at http://127.0.0.1:8000/, rebuilt when a page changes
	$(BIN)/mkdocs serve --livereload

chart: venv  ## generate the chart's values.schema.json, and its descriptions of values
	$(BIN)/python -m helm.generate

rest: venv  ## regenerate docs/rest.md from the coordinator's OpenAPI description
	$(BIN)/python -m docs.make_rest

control-plane:  ## build, with Go, the Kubernetes for tests/cluster; etcd comes from your system
	tests/cluster/build-kubernetes control-plane

images:  ## build the four images with docker, podman or buildah; see docs/kubernetes.md
	images/build

format: venv  ## format the code and apply lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv  ## run all benchmarks, an hour and a half on two cores; each ends with a JSON line
	$(BIN)/python -m benchmarks.coordinator
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.economies
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.delay
	$(BIN)/python -m benchmarks.preprocessing
	$(BIN)/python -m benchmarks.synthetic_sets
	$(BIN)/python -m benchmarks.study_page
	$(BIN)/python -m benchmarks.liveness
	$(BIN)/python -m benchmarks.study_files

clean:  ## remove the environment and build files; keep studies and caches
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
