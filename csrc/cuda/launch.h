// How host code of the CUDA kernels starts them and what it asks of the device.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace cmslap::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device, value;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace cmslap::cuda

#ifndef __CUDACC__
#include "cuda_model/launch.h"
#else

#include <cuda_runtime.h>

namespace cmslap::cuda {

// Queues kernel(arguments...) on `stream`, with `shared_bytes` of SHARED_MEMORY a block.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  constexpr size_t kUnasked = 48 * 1024;  // what every kernel may use
  if (shared_bytes > kUnasked) {
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(kernel, attribute, static_cast<int>(shared_bytes)), "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "cudaLaunchKernelEx");
}

}  // namespace cmslap::cuda
#endif
