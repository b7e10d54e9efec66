# The one door for a newcomer, a developer and the gate. Needs no root and writes nothing outside this tree.
#
#   make build         .venv with shmipc in it, and the extension beside the sources
#   make demo          the main job, end to end
#   make test          C tests under sanitizers, then pytest; T="tests/memory -k lease" for a part
#   make lint          what the gate judges besides tests; make format mends what a tool can mend
#   make crash         concurrency and crash tests, REPEAT=200 times each
#   make models        the models whole: the core's own functions, and the design (an hour or more)
#   make chaos         random kills and stops under mixed load for CHAOS_SECONDS=3600; build/chaos.json
#   make bench         benchmarks against their peers; B="..." for its arguments
#   make bench-ray     installs one peer more, a large one: Ray
#   make native-test   C tests: native-plain, native-asan (Address + Undefined), native-tsan (Thread)
#   make fuzz          libFuzzer over the bytes of a segment, FUZZ_RUNS=1000000; needs clang
#   make clean         all that make has made; make distclean: .venv too
#
# PYTHON=/path/to/python3 chooses the interpreter, JOBS=3 the number of test processes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
.PHONY: build test lint format demo bench bench-ray crash chaos fuzz models native-test native-plain native-asan native-tsan clean distclean FORCE

JOBS ?= 3
REPEAT ?= 200
T ?=
B ?=

VENV := .venv
BIN := $(VENV)/bin
TEST_SITE := build/test-site

# A home that cannot be written must not stop pip, pyright or matplotlib.
ifneq ($(shell test -w "$$HOME" && echo writable),writable)
export HOME := $(CURDIR)/build/home
endif
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/build/hypothesis
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
unexport PYTHONPATH PYTHONHOME

PIP := $(BIN)/python -m pip --quiet
MESON := $(BIN)/python -m mesonbuild.mesonmain
# Meson looks for ninja on the path; the one in .venv comes first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# --- tools -----------------------------------------------------------------------------------------------------

# All that pyproject.toml asks for, one requirement a line; $(1) are the extras.
define requirements
$(BIN)/python -c 'import sys, tomllib; \
p = tomllib.load(open("pyproject.toml", "rb")); \
print(*p["build-system"]["requires"], *p["project"]["dependencies"], \
*(line for extra in sys.argv[1:] for line in p["project"]["optional-dependencies"][extra]), sep="\n")' $(1) > $@.txt
endef

$(BIN)/python:
	@python=$$(PYTHON="$(PYTHON)" .ci/preflight); \
	echo "making $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@mkdir -p build $(HOME)
	@echo "installing what the build and the tests need"
	@$(PIP) install --upgrade 'pip>=24'
	@$(call requirements,dev interop examples)
	@$(PIP) install -r $@.txt
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.dev
	@echo "installing the peers that the benchmarks compare with"
	@$(call requirements,bench)
	@$(PIP) install -r $@.txt
	@touch $@

$(VENV)/.bench-ray: pyproject.toml $(VENV)/.dev
	@echo "installing Ray"
	@$(call requirements,bench-ray)
	@$(PIP) install -r $@.txt
	@touch $@

# --- build -----------------------------------------------------------------------------------------------------

SOURCES := $(shell find native shmipc \( -name '*.[ch]' -o -name '*.py' -o -name '*.py[xi]' -o -name '*.px[di]' \
	-o -name 'py.typed' -o -name meson.build \) | LC_ALL=C sort) meson.build meson.options pyproject.toml

# Changes when a source comes or goes, so that what was deleted does not live on in a build.
build/sources: FORCE
	@mkdir -p build
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) > $@

build: build/.release

build/.release: build/sources $(SOURCES) $(VENV)/.dev
	@echo "building shmipc"
	@$(PIP) install --no-build-isolation --no-deps --force-reinstall -Cbuild-dir=build/release .
	@$(call beside_sources,build/release/native)
	@touch $@

# The new extension takes the place of the old in one step: somebody may be running it.
define beside_sources
new=$$(basename $(1)/_native.*.so); \
cp $(1)/$$new shmipc/.$$new.new && mv shmipc/.$$new.new shmipc/$$new; \
find shmipc -maxdepth 1 -name '_native.*.so' ! -name "$$new" -delete
endef

# The test build has kill points and assertions; it is never installed in .venv.
build/.test: build/sources $(SOURCES) $(VENV)/.dev Makefile
	@echo "building shmipc with kill points"
	@$(call configure,build/test,-Dkill_points=true -Dbuildtype=debugoptimized -Doptimization=1 -Dwerror=true \
		-Dpython.platlibdir=$(CURDIR)/$(TEST_SITE) -Dpython.purelibdir=$(CURDIR)/$(TEST_SITE))
	@$(call quietly,build/test,$(BIN)/ninja -C build/test)
	@rm -rf $(TEST_SITE)
	@$(call quietly,build/test,$(MESON) install -C build/test --no-rebuild)
	@touch $@

# Set up build directory $(1) with options $(2), again when files came or went or options changed here.
define configure
mkdir -p $(1); \
if ! test $(1)/build.ninja -nt Makefile || ! test $(1)/build.ninja -nt build/sources; then \
$(call quietly,$(1),$(MESON) setup $(1) $$(test -f $(1)/build.ninja && echo --reconfigure) $(2)); \
fi
endef

# Run $(2); show what it printed only when it fails. $(1) names the log.
define quietly
if ! $(2) > $(1).log 2>&1; then cat $(1).log; exit 1; fi
endef

# --- tests -----------------------------------------------------------------------------------------------------

# Kernels that randomise more bits of an address than ThreadSanitizer can map need it switched off.
NO_ASLR := $(shell test "$$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28)" -gt 28 && \
	setarch "$$(uname -m)" -R true 2>/dev/null && echo "--wrapper 'setarch $$(uname -m) -R'")
NATIVE_REPEAT ?= 1

# $(1): name, $(2): options, $(3): arguments of meson test
define native_test
$(call configure,build/$(1),-Dtests_only=true -Dwerror=true $(2)); \
$(call quietly,build/$(1),$(BIN)/ninja -C build/$(1)); \
echo "C tests, $(1)"; \
$(call quietly,build/$(1),$(MESON) test -C build/$(1) --no-rebuild --print-errorlogs --repeat $(NATIVE_REPEAT) \
	$(if $(filter 1,$(NATIVE_REPEAT)),,--no-suite models) $(3)); \
grep -E '^(Ok|Fail|No tests)' build/$(1).log || true
endef

native-test: native-plain native-asan native-tsan

native-plain: build/sources $(VENV)/.dev
	@$(call native_test,plain,-Dbuildtype=debugoptimized -Doptimization=3,)

native-asan: build/sources $(VENV)/.dev
	@$(call native_test,asan,-Dbuildtype=debugoptimized -Db_sanitize=address$(comma)undefined -Db_lundef=false,)

native-tsan: build/sources $(VENV)/.dev
	@$(call native_test,tsan,-Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false,$(NO_ASLR))

comma := ,
PYTEST := PYTHONPATH=$(CURDIR)/$(TEST_SITE):$(CURDIR)/tests/watchdog $(BIN)/pytest -n $(JOBS) --dist loadgroup

test: build build/.test $(if $(T),,native-test)
	@$(PYTEST) $(T)

crash: build build/.test
	@$(MAKE) --no-print-directory native-test NATIVE_REPEAT=$(REPEAT)
	@SHMIPC_FULL=1 $(PYTEST) -m race --repeat $(REPEAT) $(T)

# A search is the same each time it is made: crash does not repeat it.
models: build/sources $(VENV)/.dev
	@$(call configure,build/plain,-Dtests_only=true -Dwerror=true -Dbuildtype=debugoptimized -Doptimization=3)
	@$(call quietly,build/plain,$(BIN)/ninja -C build/plain)
	@for model in ring wait call notice; do $(BIN)/python native/models/design/$${model}_model.py; done
	@build/plain/native/models/shm_models --bugs
	@build/plain/native/models/shm_models --whole

# What it finds lies in build/fuzz. A find is mended, then kept in tests/native/corpus, which test_hostile runs again
# in the gate. FUZZ= gives arguments of libFuzzer.
CLANG ?= clang
FUZZ_RUNS ?= 1000000
FUZZ ?=
FUZZ_SOURCES = tests/native/fuzz_segment.c $(sort $(wildcard native/base/*.c native/memory/*.c native/transport/*.c))

build/fuzz/fuzz_segment: $(FUZZ_SOURCES) $(SOURCES) tests/native/hostile.h tests/native/world.h tests/native/check.h
	@command -v $(CLANG) > /dev/null || { echo "make fuzz needs clang and its run-time library" \
		"(Debian: clang, libclang-rt-dev)"; exit 1; }
	@mkdir -p $(@D)/corpus
	@echo "building the fuzzer"
	@$(call quietly,build/fuzz,$(CLANG) -std=gnu11 -g -O2 -Wall -Wextra -DSHM_KILL_POINTS -Inative \
		-fsanitize=fuzzer$(comma)address$(comma)undefined -fno-sanitize-recover=all -o $@ $(FUZZ_SOURCES) -lpthread -lrt)

fuzz: build/fuzz/fuzz_segment
	@cd build/fuzz && ASAN_OPTIONS=quarantine_size_mb=4:malloc_context_size=0 ./fuzz_segment -runs=$(FUZZ_RUNS) \
		-max_len=192 -len_control=30 -timeout=60 -rss_limit_mb=3000 -print_final_stats=1 $(FUZZ) \
		corpus $(CURDIR)/tests/native/corpus

CHAOS_SECONDS ?= 3600

chaos: build build/.test
	@PYTHONPATH=$(CURDIR)/$(TEST_SITE):$(CURDIR) $(BIN)/python -P -m tests.crash.chaos \
		--seconds $(CHAOS_SECONDS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED)) --json build/chaos.json

# --- judgement -------------------------------------------------------------------------------------------------

C_FILES = $$(find native tests/native -name '*.[ch]')

lint: build
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --strict shmipc
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest --ignore-disjoint-bases --mypy-config-file pyproject.toml \
		--allowlist tests/architecture/stubtest-allowed.txt --ignore-unused-allowlist shmipc._native
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/pytest --quiet --noconftest -p no:xdist tests/architecture

format: $(VENV)/.dev
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(C_FILES)

# --- use -------------------------------------------------------------------------------------------------------

demo: build
	@$(BIN)/python -m shmipc demo

bench: build $(VENV)/.bench
	@$(BIN)/python -m bench $(B)

bench-ray: $(VENV)/.bench-ray

clean:
	rm -rf build shmipc/_native.*.so
	find shmipc tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
