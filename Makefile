# The only door: `make help` lists what is behind it. CI calls the same targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
STEP := tools/step
ONCE ?=
# More arguments for pytest: make test-unit ARGS='-k acl -x'
ARGS ?=

MULTIARCH := $(shell dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo $$(uname -m)-linux-gnu)
# The machine is named for the sake of C library headers that some kernel headers include.
BPF_FLAGS := -O2 -g -target bpf -mcpu=v3 -D__$(shell uname -m)__ -Wall -Werror -I bpf -idirafter /usr/include/$(MULTIARCH)
PROGRAMS := $(filter-out bpf/abi.bpf.c,$(wildcard bpf/*.bpf.c))
OBJECTS := $(PROGRAMS:bpf/%.bpf.c=headrace/datapath/objects/%.bpf.o)
ABI_SOURCE := $(wildcard bpf/abi.bpf.c)
ABI_OBJECT := $(if $(ABI_SOURCE),build/bpf/abi.bpf.o)
COMPILED := $(PROGRAMS:%.c=build/%.o) $(ABI_OBJECT)
C_FILES := $(sort $(wildcard bpf/*.[ch] bpf/*/*.[ch] bench/*/*.[ch] headrace/testing/*/*.[ch]))
# The longest first: the others run beside it.
SUITES := netns neutron packet unit

##@ Use
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: deps bpf ## two hosts, an overlay and a firewall under a real Neutron (root); ONCE=1 runs through and ends
	@$(PYTHON) -m headrace.testing.demo $(if $(ONCE),--once)

bench: deps deps-bench bpf ## every measurement but the wires', one table each (root, under 40 minutes)
	@$(PYTHON) -m bench $(if $(filter wire,$(MAKECMDGOALS)),--only wire --rounds 3)

bench-wire: deps deps-bench bpf ## every wire beside VXLAN and beside the parties' own (root, 12 minutes); also: make bench wire
	@$(PYTHON) -m bench --only wire --rounds 3
wire: $(if $(filter bench,$(MAKECMDGOALS)),,bench-wire)
	@:

bench-quick: deps deps-bench bpf ## the headline rows (root, two minutes)
	@$(PYTHON) -m bench --quick

wheel: deps bpf build/wheel.stamp ## dist/headrace-*.whl with compiled programs and libbpf, tried in a fresh environment
	@ls dist/*.whl

##@ Test
test: deps bpf ## everything that this machine can run, two suites at a time
	@echo "$(SUITES): two at a time; each tells at its end"
	@$(MAKE) -j2 --output-sync=target --keep-going $(SUITES:%=test-%) 2> >(grep -v '^make.*Entering\|^make.*Leaving' >&2) && echo "all suites passed"

test-unit: deps ## no root, no kernel, under 30 seconds
test-packet: deps bpf ## real programs, packet by packet (root)
test-netns: deps bpf ## hosts in network namespaces with real traffic (root)
test-neutron: deps bpf ## against a real Neutron server
$(SUITES:%=test-%):
	@$(if $(wildcard $(@:test-%=tests/%)/test_*.py $(@:test-%=tests/%)/*/test_*.py), \
		echo "== $(@:test-%=%)"; $(PYTHON) -m pytest tests/$(@:test-%=%) -q -m 'not stock and not lab' $(ARGS), \
		echo "== $(@:test-%=%): no tests here")

test-stock: deps ## all of Neutron's own ML2 test classes with our driver (long)
	@$(PYTHON) -m pytest tests/neutron/stock -q --timeout 600 $(ARGS)

test-lab: deps bpf ## in the lab VM: the datapath packet by packet on Debian's 6.1, and its kernel as the other side of every wire (long)
	@$(PYTHON) -m pytest tests/netns -q -m lab --timeout 1200 $(ARGS)

MINUTES ?= 10
test-equivalence: deps bpf ## new random scenarios through programs and oracle (root); MINUTES=10, failures go to tests/corpus
	@$(PYTHON) -m headrace.testing.equivalence --minutes $(MINUTES) $(ARGS)

check: deps $(ABI_OBJECT) ## format, lint, types, ABI, layers, unit tests; no root, under a minute
	@$(MAKE) -j2 --output-sync=target --keep-going $(CHECKS) 2> >(grep -v '^make' >&2) || { echo "check: FAILED"; exit 1; }

# The two long ones first: they run beside each other.
CHECKS := check-types check-unit check-format check-lint check-c-format check-c-lint check-abi check-layers check-docs
check-format:
	@$(STEP) "format (ruff)" $(BIN)/ruff format -q --check .
check-lint:
	@$(STEP) "lint (ruff)" $(BIN)/ruff check -q .
check-c-format:
	@$(STEP) "format of C (clang-format)" $(BIN)/clang-format --dry-run -Werror $(C_FILES)
check-c-lint:
	@$(STEP) "verdicts have reasons (lint_c)" $(PYTHON) tools/lint_c.py $(filter bpf/%,$(C_FILES))
check-abi: $(ABI_OBJECT)
	@$(STEP) "abi.py says what abi.h says" $(ABIGEN) --check
check-layers:
	@$(STEP) "layers (import-linter)" $(BIN)/lint-imports --cache-dir build/import-linter
check-docs:
	@$(STEP) "documents" $(PYTHON) tools/docs.py --check
check-types:
	@$(STEP) "types (mypy)" $(BIN)/mypy
check-unit:
	@$(STEP) "unit tests" $(PYTHON) -m pytest tests/unit -q $(ARGS)

##@ Build
deps: build/debian.stamp build/venv.stamp ## Debian packages and the virtual environment
	@:

deps-bench: build/debian-bench.stamp ## the contenders of the bench
	@:

bpf: deps $(OBJECTS) ## compile the eBPF programs
	@:

abi: deps $(ABI_OBJECT) ## generate headrace/abi.py from bpf/abi.h, and the page of reasons
	@$(STEP) "headrace/abi.py" $(ABIGEN)
	@$(STEP) "docs" $(PYTHON) tools/docs.py

docs: deps ## generate the reference pages of docs/ and check every link
	@$(STEP) "docs" $(PYTHON) tools/docs.py

format: deps ## format Python and C in place
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix-only .
	@$(if $(C_FILES),$(BIN)/clang-format -i $(C_FILES))

lock: deps ## resolve requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile -q --all-extras --group dev --group stock --generate-hashes --no-header \
		--no-emit-index-url --no-annotate pyproject.toml -o requirements.lock

clean: ## remove what was built; the virtual environment stays
	@rm -rf build dist headrace/datapath/objects *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

ABIGEN = $(PYTHON) tools/abigen.py $(ABI_OBJECT) --header bpf/abi.h -o headrace/abi.py

build/debian.stamp: debian-packages.txt
build/debian-bench.stamp: debian-packages-bench.txt
build/debian.stamp build/debian-bench.stamp:
	@mkdir -p build
	@$(STEP) "Debian packages ($<)" tools/install-debian $<
	@touch $@

build/venv.stamp: requirements.lock pyproject.toml tools/make-venv | build/debian.stamp
	@$(STEP) "virtual environment" tools/make-venv $(VENV)
	@touch $@

# A missing list of headers counts as new, so that its object is compiled again.
$(COMPILED:.o=.d): ;
$(COMPILED): build/bpf/%.o: bpf/%.c build/bpf/%.d Makefile | build/debian.stamp
	@mkdir -p $(@D)
	@$(STEP) "$<" clang $(BPF_FLAGS) -MMD -MP -MT $@ -c $< -o $@
	@touch $@

$(OBJECTS): headrace/datapath/objects/%: build/bpf/%
	@mkdir -p $(@D)
	@llvm-strip -g $< -o $@

build/wheel.stamp: $(OBJECTS) $(shell find headrace -type f -not -name '*.pyc') pyproject.toml README.md tools/make-wheel
	@$(STEP) "wheel" tools/make-wheel
	@touch $@

include $(wildcard $(COMPILED:.o=.d))

.PHONY: $(CHECKS) $(SUITES:%=test-%) help demo bench bench-wire wire bench-quick wheel test test-stock test-lab test-equivalence check deps deps-bench bpf abi docs \
	format lock clean
