# make install   .venv with the package (editable) and all that its tests need
# make demo      enlarges photographs, trains a small network for a minute; results and a page to look at in demo/
# make demo-video  a video at half its size, and the weights that make it large; some minutes, results in demo-video/
# make test      the tests; those that need a CUDA GPU skip themselves without one
# make sanitize  the CPU kernels under the address, undefined behaviour and thread sanitizers; the CUDA kernels in their model
#                under the first two
# make bench     speed on this machine's processor, beside what a user would otherwise run; ARGS="--quick" and others
# make gpu       on a machine with a CUDA GPU: builds, tries, measures and tests, offline, in calls of under ten minutes;
#                GPU_OUT=folder, QUICK=1, ARGS="--resume FILE" and others: bench/gpu/README.md
# make gpu-sanitize  the CUDA kernels under compute-sanitizer, on such a machine; into sanitizer.json beside the rest
# make lint      style
# make dist      sdist and wheel in dist/
# make clean     removes what was built, and .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

KERNEL_TEST := tests/csrc/kernels.cpp $(filter-out %/bindings.cpp,$(wildcard csrc/cpu/*.cpp))

.PHONY: install demo demo-video test sanitize bench gpu gpu-sanitize lint dist clean

install: $(VENV)/installed

# Without build isolation the extension is compiled against the PyTorch that runs it, and torch is installed once.
$(VENV)/installed: setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py --out demo

demo-video: install
	$(BIN)/python examples/demo_video.py --out demo-video

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

sanitize:
	mkdir -p build
	set -e; for sanitizer in address,undefined thread; do \
		$(CXX) -std=c++17 -O1 -g -Wno-psabi -fsanitize=$$sanitizer -fno-sanitize-recover=all -Icsrc \
			$(KERNEL_TEST) -pthread -o build/kernel_test; \
		for isa in avx512_bf16 avx512 avx2 portable; do CMSLAP_ISA=$$isa build/kernel_test; done; \
	done
	$(MAKE) -f tests/csrc/cuda.mk BUILD=build/cuda_sanitized SANITIZE=address,undefined
	build/cuda_sanitized/cuda_tests --cases 2

bench: install
	$(BIN)/python -m bench $(ARGS)

# The PyTorch of $(PYTHON) itself: the one that fits the machine's driver, and no download.
gpu:
	$(PYTHON) -m bench.gpu $(if $(GPU_OUT),--out "$(GPU_OUT)") $(if $(QUICK),--quick) $(ARGS)

gpu-sanitize:
	$(PYTHON) -m bench.gpu.sanitizer $(if $(GPU_OUT),--json "$(GPU_OUT)/sanitizer.json")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files '*.cpp' '*.cu' '*.h')

dist: install
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis cmslap/*.so cmslap/_CUDA.txt cmslap/kernels
	find . -name __pycache__ -prune -exec rm -rf {} +
