# Everything that a person types. Each target sets up the local environment first; `make help` lists them.

VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
BIN = $(VENV)/bin
C_FILES = $$(git ls-files 'src/*.c' 'src/*.h' 'tests/*.c' 'bench/*.c' ':!tests/golden')

.PHONY: help demo test test-slow init doctor bench bench-inference prove-inference bench-verify lint format docs mutations environment clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo     data -> train -> prove -> compile -> draw, about two minutes on 2 cores'
	@echo 'make test     the test suite, all but the slow proofs'
	@echo 'make test-slow  those: small models of every family through every proof'
	@echo 'make init     set up the local environment and say what works on this machine'
	@echo 'make doctor   say what works on this machine'
	@echo 'make bench    speed and memory against PyTorch, on this machine'
	@echo 'make bench-inference  speed, memory and error against llama.cpp, on this machine'
	@echo 'make prove-inference  logits of files of five families beside transformers and llama.cpp, with a verdict'
	@echo 'make bench-verify  verification of checkpoints against cmp and Orbax, on this machine'
	@echo 'make lint     ruff, mypy and clang-format'
	@echo 'make format   let ruff and clang-format rewrite the files'
	@echo 'make docs     write the generated pages of docs/ again'
	@echo 'make mutations'
	@echo '              what verify and the usual checks say of each fault of a conversion'
	@echo 'make clean    delete the local environment; runs are kept'
	@echo
	@echo 'Variables: make test PYTEST_ARGS="-k rmsnorm"'
	@echo '  VENV=DIR           where the environment is (default .venv)'
	@echo '  PYTHON=PATH        the interpreter to make it with (default: the first python3 that is 3.11+)'
	@echo '  TORCH_INDEX=URL    the package index to take PyTorch from'
	@echo '  PYTEST_ARGS=ARGS   passed to pytest'
	@echo '  BENCH_ARGS=ARGS    passed to bench/train.py, for example "--shapes c --threads 2",'
	@echo '                     to bench/inference.py, for example "MODEL.gguf --rounds 3",'
	@echo '                     or to bench/verify.py, for example "--kinds orbax --rounds 3"'
	@echo '  LOCKSTEP_HOME=DIR  where runs and builds go (default ~/.cache/lockstep)'

environment:
	@.ci/environment $(VENV)

demo:
	@.ci/environment $(VENV) torch,oracle,cc
	@$(BIN)/lockstep demo --force

test: environment
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: environment
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[harness]'
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(PYTEST_ARGS)

init: doctor

doctor: environment
	@$(BIN)/lockstep doctor

bench: environment
	@$(BIN)/python bench/train.py $(BENCH_ARGS)

bench-inference: environment
	@$(BIN)/python bench/inference.py $(BENCH_ARGS)

prove-inference: environment
	@$(BIN)/python bench/numerics.py $(BENCH_ARGS)

bench-verify: environment
	@$(BIN)/python bench/verify.py $(BENCH_ARGS)

lint: environment
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(C_FILES)

format: environment
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(C_FILES)

docs: environment
	@$(BIN)/python docs/generate.py

mutations: environment
	@$(BIN)/python docs/mutations.py

clean:
	@rm -rf $(VENV)
