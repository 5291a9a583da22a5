# Everything below works from a fresh clone with Python 3.11, pip and make.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
DATA ?= data/tofu
SERVER ?= http://127.0.0.1:8000
# Tests run in so many processes, each with what it starts on one core: threads that wait for each other spin.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/pytest -n $(WORKERS) --no-loadscope-reorder
# On a CPU the kernels run in Triton's interpreter, which has to be chosen before Triton is imported.
KERNEL_TESTS = $(BIN)/python -c 'import torch; raise SystemExit(not torch.cuda.is_available())' \
  || export TRITON_INTERPRET=1; $(PYTEST) tests/unit/kernels/test_compose.py tests/unit/kernels/test_triton_compose.py
# uv downloads and unpacks many packages at a time; where it finds no index, pip does, as its own settings say.
UV := uv==0.11.0
export PYTHONSAFEPATH := 1
# What uv installs has no bytecode: the first process that imports a module must be able to leave it for the next.
unexport PYTHONDONTWRITEBYTECODE
export VLLM_NO_USAGE_STATS := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: serve
serve: install ## Serve SmolLM2-135M-Instruct, taught one person, with three forget sets on http://127.0.0.1:8000 (fetched at first, 93 MB)
	$(BIN)/unlearngate serve smollm2-135m-taught $(SERVE)

.PHONY: serve-demo
serve-demo: install ## Serve the tiny demo: a target that recites twelve people who do not exist
	$(BIN)/unlearngate serve $(SERVE)

.PHONY: demo
demo: install ## Train the demo that comes with the package again, and check it (half an hour)
	$(BIN)/unlearngate demo build --force --out build/demo

.PHONY: test
test: install lint ## Everything CI runs: lint, types, unit tests, real engines, the demo
	$(MAKE) -j 2 clients typecheck
	$(PYTEST)
	$(KERNEL_TESTS)

.PHONY: test-all
test-all: test test-parity test-deploy soak fuzz demo ## All tests there are: also those that fetch more (test-deploy) or take long (soak)

.PHONY: test-unit
test-unit: install ## The tests that start no engine (minutes)
	$(PYTEST) -m "not e2e"

.PHONY: test-kernels
test-kernels: install ## The Triton kernels: in Triton's interpreter, or compiled where there is a GPU
	$(KERNEL_TESTS)

.PHONY: test-parity
test-parity: install ## The engine against Hugging Face + PEFT, token for token, with more requests than in `make test`
	PARITY_REQUESTS=200 $(PYTEST) tests/e2e/test_parity.py tests/e2e/kinds/test_speculation.py

.PHONY: test-clients
test-clients: install clients ## Other people's clients against the served demo
	$(BIN)/pytest tests/e2e/test_clients.py tests/e2e/test_clients_openai.py

.PHONY: test-deploy
test-deploy: install ## Deployment: the image's steps, manifests, and a real nginx before two real servers
	PYTHON=$(BIN)/python sh tests/deploy/fetch.sh
	$(BIN)/pytest tests/deploy

.PHONY: bench-kernels
bench-kernels: install ## Time compose against torch.compile, the paper's way and a plain copy (on a CPU: BENCH=--quick)
	$(BIN)/python benchmarks/kernels.py --out build/bench $(BENCH)
	$(BIN)/python benchmarks/plot.py build/bench/kernels.csv

.PHONY: bench-serving
bench-serving: install ## Decode with ours and with plain vLLM in turns, and write the ratios (BENCH=options such as --shape llama-3.1-8b)
	PYTHONPATH=. $(BIN)/python -m benchmarks.serving --out build/bench $(BENCH)

.PHONY: soak
soak: install ## Half an hour of mixed load while sets change, every answer compared (SOAK=options such as --minutes 5)
	PYTHONPATH=tests $(BIN)/python -m soak --out build/soak $(SOAK)

.PHONY: fuzz
fuzz: install ## Ten minutes of bodies from a grammar of OpenAI's API, beside a client that wants little (FUZZ=options)
	PYTHONPATH=tests $(BIN)/python -m fuzz --out build/fuzz $(FUZZ)

.PHONY: attack
attack: install ## Attack the demo's first forget set at a server that is running (make serve-demo): SERVER=URL, ATTACK=options
	$(BIN)/unlearngate attack --server $(SERVER) --set tobias-renkel \
	  --probes "$$($(BIN)/unlearngate demo path)/probes.jsonl" $(ATTACK)

.PHONY: bench-forgetting
bench-forgetting: install ## Train, serve and attack sets on SmolLM2, and write a table against the goals (BENCH=options; hours)
	PYTHONPATH=. $(BIN)/python -m benchmarks.forgetting $(BENCH)

.PHONY: bench-quantised
bench-quantised: install ## Round SmolLM2 with a set, and with NPO and UNDIAL tuned into it, to 8 and 4 bits (most of an hour)
	PYTHONPATH=. $(BIN)/python -m benchmarks.quantised $(BENCH)

.PHONY: reproduce
reproduce: install ## Make the TOFU results table: DATA=folder of TOFU's JSON lines, REPRODUCE=options such as --scale forget05
	$(BIN)/unlearngate reproduce --data $(DATA) $(REPRODUCE)

.PHONY: lint
lint: install ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: install ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: typecheck
typecheck: install ## Strict types over our code
	rm -rf .namespace && mkdir .namespace
	cp -rs "$(CURDIR)/unlearngate" .namespace/
	ln -s "$(CURDIR)/server" "$(CURDIR)/kernels" "$(CURDIR)/assistant_training" .namespace/unlearngate/
	ln -s "$(CURDIR)/benchmarks" .namespace/
	$(BIN)/mypy

.PHONY: lock
lock: install ## Pin requirements/cpu.txt to what is installed
	$(BIN)/python requirements/lock.py

.PHONY: install
install: $(STAMP) ## Install into .venv: CPU engine, training, development tools

# torch's CPU build: from where pip is told to look, else from PyTorch's own index through uv.
$(STAMP): requirements/cpu.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || python3 -m venv --clear $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info[:2] == (3, 11), "Python 3.11 is needed, this is " + sys.version'
	$(BIN)/pip install --quiet "$(UV)"
	$(BIN)/pip install --quiet --no-deps --no-compile "torch==2.13.0+cpu" \
	  || $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend=cpu torch==2.13.0
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/cpu.txt \
	  || $(BIN)/pip install --quiet --no-deps -r requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

.PHONY: clients
clients: $(CLIENTS_STAMP) ## Install LangChain, LiteLLM's proxy and lm-eval into .venv-clients, for the tests

$(CLIENTS_STAMP): requirements/clients.txt $(STAMP)
	test -x $(CLIENTS)/bin/pip || $(PYTHON) -m venv --clear $(CLIENTS) || python3 -m venv --clear $(CLIENTS)
	$(BIN)/uv pip install --quiet --python $(CLIENTS)/bin/python --no-deps -r requirements/clients.txt \
	  || $(CLIENTS)/bin/pip install --quiet --no-deps --no-compile -r requirements/clients.txt
	LITELLM_LOCAL_MODEL_COST_MAP=True $(CLIENTS)/bin/python -c 'import litellm.proxy.proxy_server, lm_eval, langchain_openai' # leaves their bytecode
	touch $(CLIENTS_STAMP)
