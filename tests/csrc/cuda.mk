# The CUDA kernels and their tests in the model of a thread block, for any C++ compiler. From the root of the repository:
#   make -f tests/csrc/cuda.mk [BUILD=folder] [SANITIZE=address,undefined]
# `make ... native` compiles the same tests with nvcc for a GPU of this machine: $(NATIVE)/cuda_tests.
# With TORCH=folder, where PyTorch's include/ and lib/ are, also $(BUILD)/operations.so: all of csrc/cuda for CPU tensors, with its
# operators in a namespace of their own, cmslap_cuda_model.
BUILD ?= build/cuda_model
NATIVE ?= build/cuda_native
CXX ?= g++
CXXFLAGS := -std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -Icsrc -Itests/csrc -Itests/csrc/cuda_model \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)

KERNELS := $(wildcard csrc/cuda/*.cu)
MODEL := $(wildcard tests/csrc/cuda_model/*.cpp)
TESTS := $(wildcard tests/csrc/cuda_*.cpp)

objects = $(patsubst %,$(BUILD)/%.o,$(1))

$(BUILD)/cuda_tests: $(call objects,$(KERNELS) $(MODEL) $(TESTS))
	$(CXX) $(CXXFLAGS) $^ -o $@

$(BUILD)/%.o: %
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

NATIVE_TESTS := $(filter-out %_model_test.cpp,$(TESTS))
PORTABLE_CODE := -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=compute_80
HOPPER_CODE := -gencode=arch=compute_90a,code=sm_90a

.PHONY: native
native: $(NATIVE)/cuda_tests

$(NATIVE)/cuda_tests: $(patsubst %,$(NATIVE)/%.o,$(KERNELS) $(NATIVE_TESTS))
	nvcc $^ -o $@

$(NATIVE)/%.o: %
	@mkdir -p $(@D)
	nvcc -std=c++17 -O3 -lineinfo -Icsrc -Itests/csrc $(if $(findstring sm90,$<),,$(PORTABLE_CODE)) $(HOPPER_CODE) -MMD -MP -x cu -c $< -o $@

ifdef TORCH
TORCH_FLAGS := -isystem $(TORCH)/include -DTORCH_TARGET_VERSION=0x020a000000000000 -Wno-unused-parameter

$(BUILD)/operations.so: $(call objects,$(KERNELS) $(MODEL) $(wildcard csrc/cuda/*.cpp))
	$(CXX) -shared $^ -L$(TORCH)/lib -ltorch_cpu -Wl,--no-undefined -o $@

$(call objects,$(wildcard csrc/cuda/*.cpp)): CXXFLAGS += $(TORCH_FLAGS) -Dcmslap_cuda=cmslap_cuda_model
endif

-include $(shell find $(BUILD) $(NATIVE) -name '*.d' 2>/dev/null)
