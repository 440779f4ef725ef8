# Every target works in .venv, which it makes. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEED   ?= 7
OUT    ?= demo
STUDY  ?=
TEXT_EMBEDDINGS ?=
SOURCES := pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo serve web page-picture overview-picture test test-service test-jobs test-api test-training test-page test-slow check check-static audit format openapi bench bench-reading bench-api chaos fuzz train-default clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

$(VENV)/.run: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	@touch $@

$(VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run ## start a service, send it a study (STUDY=path; a phantom otherwise), print what it finds
	@if [ -z "$(STUDY)" ]; then \
	  rm -rf $(OUT)/phantom && $(BIN)/viscera-train phantom --dicom --seed $(SEED) --spacing 1 1 3 --out $(OUT)/phantom; fi
	@$(BIN)/viscera demo "$(if $(STUDY),$(STUDY),$(OUT)/phantom)" --out $(OUT)/result

WEB := service/web

web: $(WEB)/built/index.html ## build the page; needs node 20 or later and npm

$(WEB)/built/index.html: $(wildcard $(WEB)/src/*) $(WEB)/build.mjs $(WEB)/package-lock.json openapi.yaml
	npm --prefix $(WEB) ci --no-audit --no-fund
	npm --prefix $(WEB) run build

page-picture: $(VENV)/.dev web ## draw docs/page.png from a phantom; needs Chromium
	$(BIN)/python -m docs.draw_page

overview-picture: $(VENV)/.dev ## draw docs/overview.png from a phantom
	$(BIN)/python -m docs.draw_overview

# With npm the page that has volumes; without it a plain one is served, and the tests in a browser are skipped.
BUILD_PAGE := command -v npm > /dev/null && $(MAKE) --no-print-directory web || echo "The page was not built (npm)."

serve: $(VENV)/.run ## start the service at http://127.0.0.1:8000
	@$(BUILD_PAGE)
	@$(BIN)/viscera serve

# Processes side by side: training forks its loaders, and one full of the threads of inference engines is no place to
# fork from; the tests of jobs mostly wait.
test: $(VENV)/.dev ## run the tests
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=line test-service test-jobs test-api test-training test-page

test-service: $(VENV)/.dev ## the tests of reading, inference, reports, export, and of all of it together
	$(BIN)/python -m pytest --ignore tests/training --ignore tests/jobs --ignore tests/exchange --ignore tests/web --ignore tests/api --ignore tests/deploy

test-api: $(VENV)/.dev ## the tests of the API, the commands, and of what deploys them
	$(BIN)/python -m pytest tests/api tests/deploy

test-jobs: $(VENV)/.dev ## the tests of jobs and of the exchange with a PACS
	$(BIN)/python -m pytest tests/jobs tests/exchange

test-training: $(VENV)/.dev ## the tests of training
	$(BIN)/python -m pytest tests/training

test-page: $(VENV)/.dev ## the tests of the page, in a browser where npm and Chromium are
	@$(BUILD_PAGE)
	$(BIN)/python -m pytest tests/web

test-slow: $(VENV)/.dev ## run the slow tests: training, whole real scans
	$(BIN)/python -m pytest -m slow

check-static: $(VENV)/.dev ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: check-static test ## everything that CI checks

audit: $(VENV)/.dev ## known weaknesses of the dependencies (asks PyPI) and of the code
	$(BIN)/bandit -q -c pyproject.toml -r service model_export training
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/audited.txt --progress-spinner off

format: $(VENV)/.dev ## reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(VENV)/.dev ## write openapi.yaml from the app
	$(BIN)/python -m service.openapi

bench: $(VENV)/.dev ## side by side with the published way (STUDY=path; a phantom otherwise), and seconds per window
	@if [ -z "$(STUDY)" ]; then $(BIN)/viscera-train phantom --seed $(SEED) --spacing 1 1 3 --out $(OUT)/bench; fi
	$(BIN)/python -m benchmarks.pipeline "$(if $(STUDY),$(STUDY),$(OUT)/bench/ct.nii.gz)"
	$(BIN)/python -m benchmarks.window

bench-api: $(VENV)/.dev ## from POST to task start, and polls per second, on an otherwise idle machine
	$(BIN)/python -m benchmarks.api

bench-reading: $(VENV)/.dev ## seconds to read 400 DICOM slices, uncompressed and lossless JPEG
	$(BIN)/python -m benchmarks.reading

# The small disk that is filled is a mount, which needs root; CHAOS=--no-full-disk leaves it out.
chaos: $(VENV)/.dev ## 200 jobs while workers are killed, Redis and PostgreSQL go away and the disk fills up; minutes
	$(BIN)/python -m tests.support.chaos $(CHAOS)

fuzz: $(VENV)/.dev ## read 20,000 DICOM and NIfTI files with mutated headers; minutes
	$(BIN)/python -m pytest -m slow tests/imaging/test_header_fuzz.py

BUNDLE := 2.4.2
TEXT_OPTION := $(if $(TEXT_EMBEDDINGS),--text-embeddings $(TEXT_EMBEDDINGS))

train-default: $(VENV)/.dev ## reproduce the default bundle (TEXT_EMBEDDINGS=file EXAMPLE_CT=folder CTS=folder); long on a CPU
	@test -d "$(EXAMPLE_CT)" || { echo "EXAMPLE_CT=folder with example_ct.nii.gz and its labels: training/recipes/example_ct.yaml"; exit 2; }
	@test -d "$(CTS)" || { echo "CTS=folder with the CTs that training/annotations/README.md lists, a folder each"; exit 2; }
	$(BIN)/viscera-train train --run runs/first --recipe default_compact $(TEXT_OPTION)
	mkdir -p runs/refined runs/lesions && for run in refined lesions; do ln -sfn ../first/store runs/$$run/store; done
	$(BIN)/viscera-train train --run runs/refined --recipe default_compact_refine $(TEXT_OPTION) --start-from runs/first/model.pt
	$(BIN)/viscera-train harmonize "$(EXAMPLE_CT)" --as training/recipes/example_ct.yaml --recipe default_compact_lesions \
	  --out runs/scans
	$(BIN)/viscera-train train --run runs/lesions --recipe default_compact_lesions $(TEXT_OPTION) --store runs/scans \
	  --start-from runs/refined/model.pt
	$(BIN)/viscera-train train --run runs/burden --recipe default_compact_burden $(TEXT_OPTION) --store runs/scans \
	  --start-from runs/lesions/model.pt
	cp -RL "$(CTS)" runs/cts && cp -R training/annotations/labels runs/cts/
	for part in abdomens chests; do $(BIN)/viscera-train harmonize runs/cts --as training/annotations/annotated_$$part.yaml \
	  --recipe default_compact_patients --out runs/scans; done
	$(BIN)/viscera-train train --run runs/default --recipe default_compact_patients $(TEXT_OPTION) --store runs/scans \
	  --start-from runs/burden/model.pt
	$(BIN)/viscera-train calibrate runs/default/model.pt --bfloat16 --store runs/first/store --out runs/default/calibrated.pt
	$(BIN)/viscera-export bundle runs/default/calibrated.pt --out runs/bundle --name viscera-compact --version $(BUNDLE) --force
	$(BIN)/viscera-train evaluate --bundle runs/bundle/viscera-compact-$(BUNDLE) --scans 20 --out runs/evaluation
	$(BIN)/viscera-export bundle runs/default/calibrated.pt --out service/bundles --name viscera-compact --version $(BUNDLE) \
	  --evaluation runs/evaluation/evaluation.md --force

clean: ## remove what the targets made, but not .venv
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache
