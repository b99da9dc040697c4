# The CUDA kernels and their tests in the model of a thread block, for any C++ compiler. From the root of the repository:
#   make -f tests/csrc/cuda.mk [BUILD=folder] [SANITIZE=address,undefined]
BUILD ?= build/cuda_model
CXX ?= g++
CXXFLAGS := -std=c++17 -O2 -g1 -fPIC -Wall -Wextra -Wno-unknown-pragmas -Icsrc -Itests/csrc -Itests/csrc/cuda_model \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)

KERNELS := $(wildcard csrc/cuda/*.cu)
MODEL := $(wildcard tests/csrc/cuda_model/*.cpp)
TESTS := $(addprefix tests/csrc/,cuda_testing.cpp cuda_model_test.cpp cuda_instructions.cpp cuda_instructions_sm90.cpp cuda_kernels.cpp cuda_pictures.cpp)

objects = $(patsubst %,$(BUILD)/%.o,$(1))

$(BUILD)/cuda_tests: $(call objects,$(KERNELS) $(MODEL) $(TESTS))
	$(CXX) $(CXXFLAGS) $^ -o $@

$(BUILD)/%.o: %
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -MMD -x c++ -c $< -o $@

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
