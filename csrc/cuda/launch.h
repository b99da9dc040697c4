// How host code of the CUDA kernels starts them and what it asks of the device.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cmslap::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int current_device() {
  int device;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int value;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "cudaDeviceGetAttribute");
  return value;
}

// How many multiprocessors grids are made for at most. CMSLAP_CUDA_MULTIPROCESSORS, or a test that sets it, gives a
// block several tiles where a device has more multiprocessors than a small problem has tiles.
inline int& max_multiprocessors() {
  static int count = [] {
    const char* const text = std::getenv("CMSLAP_CUDA_MULTIPROCESSORS");
    if (text == nullptr) return INT_MAX;
    const int value = std::atoi(text);
    if (value < 1) throw std::runtime_error(std::string("CMSLAP_CUDA_MULTIPROCESSORS must be 1 or more, not ") + text);
    return value;
  }();
  return count;
}
inline int multiprocessors() {
  return std::min(device_attribute(cudaDevAttrMultiProcessorCount), max_multiprocessors());
}

}  // namespace cmslap::cuda

#ifndef __CUDACC__
#include "cuda_model/launch.h"
#else

#include <cuda_runtime.h>

#include <map>
#include <utility>

namespace cmslap::cuda {

// Lets blocks of a kernel have so much dynamic shared memory on the current device; asks the runtime only for more than
// this thread has asked for before.
inline void allow_shared_memory(const void* kernel, size_t bytes) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (bytes <= kAlwaysAllowed) return;
  static thread_local std::map<std::pair<const void*, int>, size_t> allowed;
  size_t& before = allowed[{kernel, current_device()}];
  if (bytes <= before) return;
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check(cudaFuncSetAttribute(kernel, attribute, static_cast<int>(bytes)), "cudaFuncSetAttribute");
  before = bytes;
}

// Queues kernel(arguments...) on `stream`, with `shared_bytes` of SHARED_MEMORY a block.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "cudaLaunchKernelEx");
}

}  // namespace cmslap::cuda
#endif
