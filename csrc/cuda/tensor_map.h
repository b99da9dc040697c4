// Descriptions of tensors for the copy engine (tma_load and tma_store of ptx.h), made on the host.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <unordered_map>

#include "launch.h"
#include "ptx.h"

namespace cmslap::cuda {

// A tensor of 16-bit elements, innermost dimension first and dense, and the boxes of it that one copy moves. The
// 16-byte pieces of a box's rows, 128 bytes each, are swizzled in shared memory (indexing_sm90.h).
template <size_t kRank>
struct Tensor {
  const void* data;                         // 16-byte aligned
  std::array<uint64_t, kRank> extents;      // in elements
  std::array<uint64_t, kRank - 1> strides;  // in bytes, of the dimensions after the innermost; multiples of 16
  std::array<uint64_t, kRank> box;          // in elements, at most 256 each; 64 of the innermost

  bool operator==(const Tensor& other) const { return std::memcmp(this, &other, sizeof *this) == 0; }
};

#ifdef __CUDACC__

template <size_t kRank>
TensorMap encode(const Tensor<kRank>& tensor) {
  // Through the runtime, so that nothing links to libcuda, which a machine without a GPU lacks.
  static const auto encode_tiled = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPoint");
    if (function == nullptr) throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  std::array<uint32_t, kRank> box, element_strides;
  std::copy(tensor.box.begin(), tensor.box.end(), box.begin());
  element_strides.fill(1);
  TensorMap map;
  const CUresult status =
      encode_tiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(tensor.data), tensor.extents.data(),
                   tensor.strides.data(), box.data(), element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(status));
  return map;
}

#else

template <size_t kRank>
TensorMap encode(const Tensor<kRank>& tensor) {
  TensorMap map{static_cast<const uint8_t*>(tensor.data), static_cast<int>(kRank), {}, {}, {}};
  std::copy(tensor.extents.begin(), tensor.extents.end(), map.extents);
  std::copy(tensor.strides.begin(), tensor.strides.end(), map.strides + 1);
  std::copy(tensor.box.begin(), tensor.box.end(), map.box);
  model::check_tensor_map(map);
  return map;
}

#endif

// A tensor map says nothing but what the description says, so one that was made before stays right, whatever has become
// of the memory meanwhile: a training step asks for the same few hundred every time.
template <size_t kRank>
TensorMap make_tensor_map(const Tensor<kRank>& tensor) {
  static_assert(std::has_unique_object_representations_v<Tensor<kRank>>);
  struct Hash {
    size_t operator()(const Tensor<kRank>& tensor) const {
      return std::hash<std::string_view>()({reinterpret_cast<const char*>(&tensor), sizeof tensor});
    }
  };
  constexpr size_t kMaxKept = 4096;
  static thread_local std::unordered_map<Tensor<kRank>, TensorMap, Hash> kept;
  const auto found = kept.find(tensor);
  if (found != kept.end()) return found->second;
  if (kept.size() == kMaxKept) kept.clear();
  return kept.emplace(tensor, encode(tensor)).first->second;
}

}  // namespace cmslap::cuda
