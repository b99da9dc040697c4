# The CUDA kernels and their tests in the model of a thread block, for any C++ compiler. From the root of the repository:
#   make -f tests/csrc/cuda.mk [BUILD=folder] [SANITIZE=address,undefined]
# With TORCH=folder, where PyTorch's include/ and lib/ are, also as libraries of operators on CPU tensors: $(BUILD)/model.so, and
# $(BUILD)/loops.so with plain loops for kernels. Their operators are in namespaces of their own, cmslap_cuda_model and _loops.
BUILD ?= build/cuda_model
CXX ?= g++
CXXFLAGS := -std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -Icsrc -Itests/csrc -Itests/csrc/cuda_model \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)

KERNELS := $(wildcard csrc/cuda/*.cu)
MODEL := $(wildcard tests/csrc/cuda_model/*.cpp)
TESTS := tests/csrc/cuda_testing.cpp tests/csrc/cuda_kernels.cpp tests/csrc/cuda_pictures.cpp

objects = $(patsubst %,$(BUILD)/%.o,$(1))

$(BUILD)/cuda_tests: $(call objects,$(KERNELS) $(MODEL) $(TESTS))
	$(CXX) $(CXXFLAGS) $^ -o $@

$(BUILD)/%.o: %
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -MMD -x c++ -c $< -o $@

ifdef TORCH
TORCH_FLAGS := -isystem $(TORCH)/include -DTORCH_TARGET_VERSION=0x020a000000000000 -Wno-unused-parameter

$(BUILD)/model.so: $(call objects,$(KERNELS) $(MODEL))
$(BUILD)/loops.so: $(call objects,tests/csrc/cuda_plain.cpp)
$(BUILD)/%.so: $(BUILD)/%_library.o $(call objects,csrc/cuda/bindings.cpp csrc/cuda/level.cpp)
	$(CXX) -shared $^ -L$(TORCH)/lib -ltorch_cpu -o $@

$(BUILD)/%_library.o: csrc/cuda/library.cpp
	@mkdir -p $(@D)
	sed 's/cmslap_cuda/cmslap_cuda_$*/' $< > $(BUILD)/$*_library.cpp
	$(CXX) $(CXXFLAGS) $(TORCH_FLAGS) -Icsrc/cuda -MMD -c $(BUILD)/$*_library.cpp -o $@

$(call objects,csrc/cuda/bindings.cpp tests/csrc/cuda_plain.cpp): CXXFLAGS += $(TORCH_FLAGS)
endif

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
