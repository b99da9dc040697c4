// What the sm_90a kernels have in common: a block is one warpgroup whose first warp asks the copy engine for boxes of
// pixels (the producer), and warpgroups that multiply them (the consumers). They meet at barriers in shared memory.
#pragma once

#include <algorithm>
#include <tuple>

#include "indexing_sm90.h"
#include "kernels.h"
#include "launch.h"
#include "ptx.h"
#include "tensor_map.h"

namespace cmslap::cuda::sm90 {

// Whether kernels have bodies: those of other devices' machine code and of PTX do not, and serves() keeps callers from
// them.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHopper = false;
#else
constexpr bool kHopper = true;
#endif

// Shapes of one kernel to be measured against each other on a device: the first is used, unless the build says
// otherwise. The last starts no operand in the middle of a swizzle's pattern.
#ifndef CMSLAP_SM90_VARIANT
#define CMSLAP_SM90_VARIANT 0
#endif
template <class... Shapes>
using Chosen = std::tuple_element_t<CMSLAP_SM90_VARIANT, std::tuple<Shapes...>>;

constexpr int kWarpgroup = 128;
constexpr int kBarrierBytes = 8;

// Warpgroups are whole, also the producer's, because a multiprocessor's four partitions each hold every fourth warp and
// a quarter of the registers: a ninth warp would leave all of them 168 registers where a third warpgroup, which
// setmaxnreg can take registers from, leaves the others 240.
template <int kConsumers>
struct Registers {
  static_assert(kConsumers == 2 || kConsumers == 3);
  static constexpr int kConsumer = kConsumers == 2 ? 240 : 152;
  static constexpr int kProducer = kConsumers == 2 ? 24 : 56;
  static_assert((kConsumers * kConsumer + kProducer) * kWarpgroup <= 65536);
};

DEVICE int warpgroup_index() { return __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0); }
DEVICE bool leads_warpgroup() { return threadIdx.x % kWarpgroup == 0; }
DEVICE bool leads_warp() { return threadIdx.x % 32 == 0; }

// Waits for the other threads of a consumer.
DEVICE void consumer_sync(int consumer) { named_barrier_sync(1 + consumer, kWarpgroup); }

// Stages of shared memory that boxes, numbered from 0, pass through in order. A box's stage is full when the copy
// engine has brought it and empty when `kReaders` warps have released it.
template <int kStages, int kStageBytes, int kReaders>
struct Pipeline {
  static constexpr int kBytes = kStages * kStageBytes;
  static constexpr int kBarriers = 2 * kStages;

  uint32_t stages, barriers;  // addresses

  DEVICE uint32_t stage(uint32_t box) const { return stages + box % kStages * kStageBytes; }
  DEVICE uint32_t full(uint32_t box) const { return barriers + box % kStages * kBarrierBytes; }
  DEVICE uint32_t empty(uint32_t box) const { return full(box) + kStages * kBarrierBytes; }

  DEVICE void init() const {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full(i), 1);
      mbarrier_init(empty(i), kReaders);
    }
  }
  // The producer's thread: the box's stage, once empty, that now expects `bytes`.
  DEVICE uint32_t fill(uint32_t box, uint32_t bytes) const {
    mbarrier_wait(empty(box), box / kStages % 2 ^ 1);
    mbarrier_arrive_expect_tx(full(box), bytes);
    return stage(box);
  }
  DEVICE uint32_t wait(uint32_t box) const {
    mbarrier_wait(full(box), box / kStages % 2);
    return stage(box);
  }
  DEVICE void release(uint32_t box) const {
    if (leads_warp()) mbarrier_arrive(empty(box));
  }
};

// The weights of nine taps, one after the other as operands [out, in], for good.
DEVICE void load_matrices(uint32_t destination, const TensorMap& matrices, uint32_t barrier, bool flipped) {
  mbarrier_arrive_expect_tx(barrier, kWeightBytes);
  for (int tap = 0; tap < kTaps; ++tap) {
    tma_load_3d(destination + tap * kMatrixBytes, matrices, barrier, 0, 0, flipped ? kTaps - 1 - tap : tap);
  }
}

inline TensorMap matrices_map(const void* matrices) {  // [9, 64, 64]
  return make_tensor_map(
      Tensor<3>{matrices, {kChannels, kChannels, kTaps}, {kPixelBytes, kMatrixBytes}, {kChannels, kChannels, 1}});
}

// A map [N, H, W, channels], channels a multiple of 64, and its boxes of rows × columns × 64.
inline TensorMap pixels_map(const void* map, int64_t batch, int64_t height, int64_t width, int channels, int rows,
                            int columns) {
  const uint64_t pixel = channels * 2, row = pixel * width, image = row * height;
  return make_tensor_map(Tensor<4>{map,
                                   {static_cast<uint64_t>(channels), static_cast<uint64_t>(width),
                                    static_cast<uint64_t>(height), static_cast<uint64_t>(batch)},
                                   {pixel, row, image},
                                   {kChannels, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), 1}});
}

// Of a window or the phases (indexing_sm90.h).
template <class Boxes>
DEVICE void load_box(uint32_t destination, const TensorMap& map, uint32_t barrier, const Tile& tile, int part) {
  tma_load_4d(destination, map, barrier, Boxes::channel(part), Boxes::left(tile, part), Boxes::top(tile), tile.image);
}

// The map that windows on [N, H, W] read (indexing_sm90.h).
template <class W>
TensorMap window_map(const void* map, Size size) {
  constexpr int s = W::kStride;
  return pixels_map(map, size.batch, s * size.height, size.width, s * kChannels, W::kHeight, W::kWidth);
}

}  // namespace cmslap::cuda::sm90
