# Each target is a line or two of the real tools; the README prints them for systems without make.

PYTHON ?= python3
BUNDLE ?=
BENCH ?=
PY := .venv/bin/python
NODE_MODULES := electron_bridge/node_modules/.package-lock.json
BRIDGE := electron_bridge/dist/.built
DEMO := .work/demo-model
LIBRARY := .work/library.cases
TINY := .work/tiny-model
CPP = $$(git ls-files '*.cc')

.PHONY: install kernels demo app test check freeze bench bench-retrieval profile soak kills fuzz attack mutate lock
.PHONY: corpus wheel npm packed bundlers nodes wine docs clean

install: .venv/.installed $(BRIDGE) kernels

# Our own operators, where there is a C++ compiler; all runs without them too.
kernels:
	$(PYTHON) sidecar/kernels/make.py

# pip takes torch's CPU build where one can be had: "+cpu" sorts above the plain version.
.venv/.installed: requirements/dev.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
	$(PY) -m pip install --quiet --requirement requirements/dev.txt
	touch $@

$(NODE_MODULES): electron_bridge/package-lock.json
	cd electron_bridge && npm ci --no-fund --no-audit
	touch $@

$(BRIDGE): $(NODE_MODULES) $(wildcard electron_bridge/src/*.ts electron_bridge/example/*.* electron_bridge/example/renderer/*)
	cd electron_bridge && npm run --silent build
	touch $@

demo: install
	$(PY) -m build demo --images 4 --out $(DEMO)  # docs/build.md says why
	node examples/demo.mjs $(DEMO)

$(DEMO)/manifest.json: .venv/.installed
	$(PY) -m build demo --images 4 --out $(DEMO)

# The example app in a browser: prints an address on the loopback interface.
app: install $(DEMO)/manifest.json $(LIBRARY)
	node electron_bridge/dist/app/serve.mjs --model $(DEMO) --library $(LIBRARY) -- $(PY) -m sidecar

# ECG pages to search in. They belong to the model: with another one they are drawn and encoded anew.
$(LIBRARY): $(DEMO)/manifest.json
	PYTHONPATH=. $(PY) examples/draw_library.py .work/library
	rm -f $@ $@.part
	$(PY) -m sidecar index .work/library --model $(DEMO) --collection $@.part --resolution 448 --metadata .work/library/cases.jsonl
	mv $@.part $@

# What runs in a bundle cannot be measured: coverage, printed last, is that of the modules.
test: install
ifdef BUNDLE
	VISION_SIDECAR=$(abspath $(BUNDLE))/vision-sidecar $(PY) -m pytest tests/sidecar tests/test_frozen.py
	cd electron_bridge && VISION_SIDECAR=$(abspath $(BUNDLE))/vision-sidecar npm test --silent
else
	rm -rf .work/coverage
	$(PY) -m coverage run -m pytest
	cd electron_bridge && npm test --silent
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report
	$(PY) -m coverage json --quiet --fail-under 0 -o .work/coverage/lines.json
	$(PY) packaging/line_coverage.py .work/coverage/lines.json
endif

check: install
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	cd electron_bridge && npm run --silent check
	.venv/bin/clang-format --dry-run -Werror $(CPP) $$(git ls-files '*.h')
ifneq ($(wildcard .work/kernels/compile_commands.json),)
	.venv/bin/clang-tidy -p .work/kernels --quiet $(CPP)
else
	@echo "clang-tidy was left out: the kernels are not compiled here, see docs/kernels.md"
endif

freeze: kernels
	$(PYTHON) packaging/freeze.py

# The peers are large, so they are installed only here.
bench: install
	$(PY) -m pip install --quiet nncf==3.4.0 openvino==2026.4.1
	$(PY) -m bench $(BENCH)

bench-retrieval: install
	$(PY) -m pip install --quiet apsw lancedb qdrant-edge-py sqlite-vec usearch
	OPENBLAS_NUM_THREADS=1 $(PY) -m bench.retrieval $(DEMO) $(BENCH)
	$(PY) -m pytest tests/test_move_collection.py

# Ray is 79 MB to download, so it is installed only here. Kills, nodes, 100,000 rows: docs/corpus.md.
corpus: install $(DEMO)/manifest.json
	$(PY) -m pip install --quiet --requirement requirements/corpus.txt lancedb qdrant-edge-py yamllint kubernetes-validate
	npx --yes dockerfile-utils@0.16.3 lint packaging/corpus/Dockerfile
	$(PY) -m pytest tests/corpus
	$(PY) -m tests.corpus_scale same --model $(DEMO)
	$(PY) -m tests.corpus_scale throughput --model $(DEMO)
	$(PY) -m tests.corpus_scale kills
	$(PY) -m tests.corpus_scale nodes
	$(PY) -m tests.corpus_scale collection

profile: install
	$(PY) -m bench.profile

soak: install
	$(PY) -m tests.soak
	cd electron_bridge && npm run --silent soak

# Processes that are killed while they change a collection: from Python, and through the bridge.
kills: install
	$(PY) -m tests.collection_kills
	cd electron_bridge && npm run --silent kills

fuzz: install
	$(PY) -m tests.fuzz
	$(PY) -m tests.fuzz --count 20000 --seed 5 --transport stdio

# The attacks of tests/attack in full, on loopback; `make test` runs them in short form.
attack: install
	$(PY) -m tests.attack.hostile_clients
	$(PY) -m tests.attack.mutated_images
	$(PY) -m tests.attack.mutated_models
	$(PY) -m tests.attack.slowest

# Mutants of the files that pyproject.toml names under tool.mutmut, and stryker.config.json for the bridge; LOG.md says which ones live, and why.
mutate: install
	$(PY) -m pip install --quiet mutmut==3.8.1
	$(PY) -m tests.mutants
	cd electron_bridge && npm run --silent mutate

# The Python package with the kernels, tagged for this platform; then in an environment of its own.
wheel: install
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PY) -m pytest -m slow tests/test_wheel.py

# Tarballs of the npm packages in dist/npm: the bridge, this platform's program, the demo model.
npm: install freeze $(DEMO)/manifest.json
	node packaging/npm.mjs dist/vision-sidecar $(DEMO)
	node packaging/npm_check.mjs examples/ecg.png

# The example app, packed from those tarballs by electron-builder and by Forge's packager, encodes.
packed:
	node packaging/electron/check.mjs examples/ecg.png

# The bridge inside bundles of esbuild, Vite and webpack, with the frozen program.
bundlers: install $(TINY)
	node packaging/bundlers/check.mjs dist/vision-sidecar $(TINY) examples/ecg.png

$(TINY): .venv/.installed
	$(PY) -m tests.tiny $@

# The bridge's tests under each Node.js that is supported.
nodes: install
	node packaging/nodes.mjs

# The bridge's tests, but those of the real sidecar, with Windows' Node.js under Wine.
wine: install
	node packaging/wine.mjs

# A site of all pages and the API, links checked, in out/site.
docs: install
	$(PY) packaging/docs_site.py

# Versions for every system and Python at once. torch is left out: it has its own line above.
lock:
	mkdir -p .work && echo "torch; python_version < '0'" > .work/no-torch.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate pyproject.toml --output-file requirements/runtime.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate pyproject.toml --extra freeze --constraints requirements/runtime.txt --output-file requirements/freeze.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate pyproject.toml --extra build --extra dev --override .work/no-torch.txt --constraints requirements/runtime.txt --output-file requirements/dev.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate pyproject.toml --extra corpus --constraints requirements/runtime.txt --constraints requirements/dev.txt --output-file requirements/corpus.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate pyproject.toml --extra corpus-cluster --constraints requirements/runtime.txt --constraints requirements/dev.txt --output-file requirements/corpus-cluster.txt

clean:
	rm -rf .work dist out mutants electron_bridge/dist
