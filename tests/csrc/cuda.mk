# The CUDA kernels and their tests in the model of a thread block, for any C++ compiler. From the root of the repository:
#   make -f tests/csrc/cuda.mk [BUILD=folder] [SANITIZE=address,undefined]
# With TORCH=folder, where PyTorch's include/ and lib/ are, also $(BUILD)/operations.so: all of csrc/cuda for CPU tensors, with its
# operators in a namespace of their own, cmslap_cuda_model.
BUILD ?= build/cuda_model
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
	$(CXX) $(CXXFLAGS) -MMD -x c++ -c $< -o $@

ifdef TORCH
TORCH_FLAGS := -isystem $(TORCH)/include -DTORCH_TARGET_VERSION=0x020a000000000000 -Wno-unused-parameter

$(BUILD)/operations.so: $(call objects,$(KERNELS) $(MODEL) $(wildcard csrc/cuda/*.cpp))
	$(CXX) -shared $^ -L$(TORCH)/lib -ltorch_cpu -Wl,--no-undefined -o $@

$(call objects,$(wildcard csrc/cuda/*.cpp)): CXXFLAGS += $(TORCH_FLAGS) -Dcmslap_cuda=cmslap_cuda_model
endif

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
