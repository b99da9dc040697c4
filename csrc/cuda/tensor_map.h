// Descriptions of tensors for the copy engine (tma_load and tma_store of ptx.h), made on the host.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "launch.h"
#include "ptx.h"

namespace cmslap::cuda {

// A tensor of 16-bit elements, innermost dimension first and dense, and the boxes of it that one copy moves.
template <size_t kRank>
struct Tensor {
  const void* data;                             // 16-byte aligned
  std::array<uint64_t, kRank> extents;          // in elements
  std::array<uint64_t, kRank - 1> strides;      // in bytes, of the dimensions after the innermost; multiples of 16
  std::array<uint32_t, kRank> box;              // in elements of the tensor, at most 256 each
  std::array<uint32_t, kRank> element_strides;  // 1 to 8: a box has every so many-th element of a dimension, rounded up
  Swizzle swizzle;                              // of the 16-byte pieces of a box's rows in shared memory
};

#ifdef __CUDACC__

template <size_t kRank>
TensorMap make_tensor_map(const Tensor<kRank>& tensor) {
  // Through the runtime, so that nothing links to libcuda, which a machine without a GPU lacks.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPoint");
    if (function == nullptr) throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  TensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(tensor.data), tensor.extents.data(),
             tensor.strides.data(), tensor.box.data(), tensor.element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             kSwizzles[static_cast<int>(tensor.swizzle)], CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(status));
  return map;
}

#else

template <size_t kRank>
TensorMap make_tensor_map(const Tensor<kRank>& tensor) {
  TensorMap map{static_cast<const uint8_t*>(tensor.data), static_cast<int>(kRank), {}, {}, {}, {}, tensor.swizzle};
  std::copy(tensor.extents.begin(), tensor.extents.end(), map.extents);
  std::copy(tensor.strides.begin(), tensor.strides.end(), map.strides + 1);
  std::copy(tensor.box.begin(), tensor.box.end(), map.box);
  std::copy(tensor.element_strides.begin(), tensor.element_strides.end(), map.element_strides);
  model::check_tensor_map(map);
  return map;
}

#endif

}  // namespace cmslap::cuda
