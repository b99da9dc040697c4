// The tied transposed convolution of 64 channels for Hopper. (Its data gradient is a convolution of stride 2:
// sm90_conv.cu.)
//
// One box of 17 × 9 pixels of the small map serves all nine taps and so all four phases of a tile of 16 × 8: for each
// phase 4, 2, 2 or 1 taps × 4 steps of wgmma m64n128k16, weights on the left and resident. Consumers work on tiles of
// their own; each stores a phase from one of two buffers while it multiplies the next.
//
// A tile, in cycles of a multiprocessor:
//   device memory, 18 bytes a cycle: 128 · (128 + 4 · 128) bytes      4550
//   tensor cores   128 · 73,728 FLOP / 4096                           2304
//   shared memory  36 · (2 + 4 KiB) + 19.1 KiB + 2 · 64 KiB           2900
// Bound by memory, by what it writes; nothing is read or written twice but the box's edge, 20 % of the small map from
// L2.
#include "implementations.h"
#include "sm90_block.h"

namespace cmslap::cuda::sm90 {
namespace {

template <class Phases, int kStages>
struct Shape {
  using P = Phases;
  using Boxes = Pipeline<kStages, P::kParts * P::kBoxStride, 4>;
};
using Up =
    Chosen<Shape<Phases<16, 8>, 4>, Shape<Phases<16, 8>, 2>, Shape<Phases<8, 8>, 8>, Shape<Phases<16, 8, true>, 2>>;
using P = Up::P;
using Boxes = Up::Boxes;  // a tile's in one stage
constexpr int kConsumers = 2, kBuffers = 2;
constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kResults = kWeightBytes + Boxes::kBytes;
constexpr int kBarriers = kResults + kConsumers * kBuffers * P::kTileBytes;
constexpr int kBytes = kBarriers + (Boxes::kBarriers + 1) * kBarrierBytes;
static_assert(kBytes <= kSharedMemory);

struct Parameters {
  TensorMap pixels, matrices, result;
  Tiling tiles;
  const float* bias;  // [64], optional
};

struct SharedStorage {
  uint32_t base;

  DEVICE uint32_t matrices() const { return base; }
  DEVICE Boxes boxes() const { return {base + kWeightBytes, base + kBarriers}; }
  DEVICE uint32_t result(int consumer, int buffer) const {
    return base + kResults + (consumer * kBuffers + buffer) * P::kTileBytes;
  }
  DEVICE uint32_t matrices_full() const { return base + kBarriers + Boxes::kBarriers * kBarrierBytes; }
};

DEVICE void produce(const Parameters& p, const SharedStorage& storage) {
  load_matrices(storage.matrices(), p.matrices, storage.matrices_full(), false);
  for (int n = 0, number = blockIdx.x; number < p.tiles.count; ++n, number += gridDim.x) {
    const Tile tile = p.tiles[number];
    const uint32_t stage = storage.boxes().fill(n, P::kParts * P::kBoxBytes);
    for (int part = 0; part < P::kParts; ++part) {
      load_box<P>(stage + part * P::kBoxStride, p.pixels, storage.boxes().full(n), tile, part);
    }
  }
}

template <class T>
DEVICE void multiply(float (&sum)[P::kPixels / 2], uint64_t matrices, uint64_t pixels, int phase) {
  bool accumulate = false;
  fence_registers(sum);
  wgmma_fence();
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    if (phase_of(tap) != phase) continue;
#pragma unroll
    for (int step = 0; step < kPixelBytes / kStepBytes; ++step) {
      wgmma<T, P::kPixels>(sum, advanced(matrices, tap * kMatrixBytes + step * kStepBytes),
                           advanced(pixels, P::part(tap) * P::kBoxStride + P::offset(tap) + step * kStepBytes),
                           accumulate);
      accumulate = true;
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(sum);
}

template <class T>
DEVICE void consume(const Parameters& p, const SharedStorage& storage, int consumer) {
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  const int channel = 16 * warp + lane / 4;
  float bias[2] = {0, 0};
  if (p.bias != nullptr) bias[0] = p.bias[channel], bias[1] = p.bias[channel + 8];
  float sum[P::kPixels / 2];
  const uint64_t matrices = descriptor(storage.matrices(), kLeadingUnread, kPatternBytes);

  mbarrier_wait(storage.matrices_full(), 0);
  for (int n = consumer, number = blockIdx.x + n * gridDim.x; number < p.tiles.count;
       n += kConsumers, number += kConsumers * gridDim.x) {
    const Tile tile = p.tiles[number];
    const uint64_t pixels = descriptor(storage.boxes().wait(n), kLeadingUnread, P::kRowBytes);
#pragma unroll
    for (int phase = 0; phase < P::kCount; ++phase) {
      multiply<T>(sum, matrices, pixels, phase);
      if (phase == P::kCount - 1) storage.boxes().release(n);

      const uint32_t result = storage.result(consumer, phase % kBuffers);
      if (leads_warpgroup()) tma_store_wait_read<kBuffers - 1>();
      consumer_sync(consumer);
#pragma unroll
      for (int row = 0; row < P::kRows; row += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] = pack<T>(sum[4 * row + 2 * i] + bias[i % 2], sum[4 * row + 2 * i + 1] + bias[i % 2]);
        }
        stmatrix_x4_trans(result + matrix_row(warp, lane) + row * kPatternBytes, words);
      }
      fence_proxy_async();
      consumer_sync(consumer);
      if (leads_warpgroup()) {
        tma_store_5d(p.result, result, phase % 2 * kChannels, tile.left, phase / 2, tile.top, tile.image);
        tma_store_commit();
      }
    }
  }
  if (leads_warpgroup()) tma_store_wait<0>();
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) transposed_conv_kernel(const __grid_constant__ Parameters p) {
  if constexpr (kHopper) {
    SHARED_MEMORY(shared);
    const SharedStorage storage{shared_address(shared)};
    if (threadIdx.x == 0) {
      storage.boxes().init();
      mbarrier_init(storage.matrices_full(), 1);
      fence_barrier_init();
    }
    __syncthreads();
    const int warpgroup = warpgroup_index();
    if (warpgroup == kConsumers) {
      setmaxnreg_dec<Registers<kConsumers>::kProducer>();
      if (threadIdx.x % kWarpgroup < 32 && elect_one()) produce(p, storage);
    } else {
      setmaxnreg_inc<Registers<kConsumers>::kConsumer>();
      consume<T>(p, storage, warpgroup);
    }
  }
}

// [N, 2H, 2W, 64] as [N, H, 2, W, 2 · 64], so that a tile's pixels of one phase are neighbours.
TensorMap phases_map(const void* map, Size size) {
  const uint64_t pair = 2 * kPixelBytes, row = pair * size.width;
  return make_tensor_map(Tensor<5>{map,
                                   {2 * kChannels, static_cast<uint64_t>(size.width), 2,
                                    static_cast<uint64_t>(size.height), static_cast<uint64_t>(size.batch)},
                                   {pair, row, 2 * row, 2 * row * size.height},
                                   {kChannels, P::kColumns, 1, P::kRows, 1}});
}

}  // namespace

void transposed_conv(const TransposedConv& c, cudaStream_t stream) {
  const Size size = c.size;
  const Parameters p{pixels_map(c.a, size.batch, size.height, size.width, kChannels, P::kHeight, P::kWidth),
                     matrices_map(c.matrices), phases_map(c.y, size),
                     Tiling(size.batch, size.height, size.width, P::kRows, P::kColumns), c.bias};
  const auto kernel = c.type == Type::kBFloat16 ? transposed_conv_kernel<BFloat16> : transposed_conv_kernel<Float16>;
  launch(kernel, std::min(p.tiles.count, multiprocessors()), kThreads, kBytes, stream, p);
}

}  // namespace cmslap::cuda::sm90
