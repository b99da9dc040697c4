// Weight gradients of 3×3 convolutions of 64 channels, of stride 1 and of stride 2, for Hopper.
//
// Pixels are what is summed over: a row of 16 pixels of a tile is one step of wgmma m64n192k16, both operands as they
// lie in memory, channels contiguous. Its 192 columns are the 64 channels of `right` under the three taps of one column
// of the window, whose pixels lie a row of the box apart: that distance is the descriptor's leading offset. A block's
// three consumers take a column of the window each and keep its three taps' sums, 96 registers a thread, until their
// share of the tiles ends.
//
// A tile of 8 × 16 pixels, in cycles of a multiprocessor (stride 1; 4096 FLOP and 128 bytes of shared memory a cycle):
//   tensor cores   128 · 73,728 FLOP / 4096                                             2304
//   shared memory  3 · 8 · (2 KiB left + 6 KiB right) + boxes 38.5 KiB                  1844 (80 %)
//   L2, about 40 bytes a cycle: 38.5 KiB                                                 990
//   device memory, 18 bytes a cycle: 32 KiB                                             1820
// m64n64k16, a tap at a time, would read left three times as often: 3 · 24 · 4 KiB, all of the cycles that there are.
// Holding left in registers would save less than a tenth and cost the transposing loads. Of stride 2, 4 × 16 pixels:
// tensor cores 1152, device memory 64 · 640 bytes / 18 = 2280: bound by memory. A share ends with 144 KiB written (and
// read, if it accumulates), once a launch.
#include "implementations.h"
#include "sm90_block.h"

namespace cmslap::cuda::sm90 {
namespace {

constexpr int kConsumers = 3;  // a column of the window each
constexpr int kColumns = 3 * kChannels;
constexpr int kThreads = (kConsumers + 1) * kWarpgroup;

struct Parameters {
  TensorMap left, right;
  Tiling tiles;  // of one map of each batch
  int batch, maps, splits;
  bool accumulate;
  float* partials;  // [splits, maps, 9, 64, 64]
};

template <class W_, int kStages>
struct Shape {
  using W = W_;
  static_assert(W::kColumns == 16, "a row of a tile is one step of the sum");
  static constexpr int kStageBytes = W::kTileBytes + W::kParts * W::kBoxStride;  // left, then right
  static constexpr int kCopiedBytes = W::kTileBytes + W::kParts * W::kBoxBytes;
  using Tiles = Pipeline<kStages, kStageBytes, 4 * kConsumers>;
  static constexpr int kBytes = Tiles::kBytes + Tiles::kBarriers * kBarrierBytes;
  static_assert(kBytes <= kSharedMemory && kStageBytes % kPatternBytes == 0);
};

// The block's tiles: share blockIdx.x of map blockIdx.y.
struct Share {
  int first, last;

  DEVICE explicit Share(const Parameters& p)
      : first(first_tile(p.tiles.count, blockIdx.x, p.splits)),
        last(first_tile(p.tiles.count, blockIdx.x + 1, p.splits)) {}
};

template <class S>
DEVICE void produce(const Parameters& p, const typename S::Tiles& tiles) {
  using W = typename S::W;
  const Share share(p);
  for (int n = 0; n < share.last - share.first; ++n) {
    Tile tile = p.tiles[share.first + n];
    tile.image += static_cast<int>(blockIdx.y) * p.batch;
    const uint32_t stage = tiles.fill(n, S::kCopiedBytes), full = tiles.full(n);
    tma_load_4d(stage, p.left, full, 0, tile.left, tile.top, tile.image);
    for (int part = 0; part < W::kParts; ++part) {
      load_box<W>(stage + W::kTileBytes + part * W::kBoxStride, p.right, full, tile, part);
    }
  }
}

// A thread's sums: rows 16·warp + lane / 4 and 8 below, of every 8 columns two neighbours.
template <class T, class S>
DEVICE void consume(const Parameters& p, const typename S::Tiles& tiles, int window_column) {
  using W = typename S::W;
  const Share share(p);
  const int count = share.last - share.first;
  const uint32_t right_offset = W::kTileBytes + W::part(window_column) * W::kBoxStride + W::offset(window_column);
  float sum[kColumns / 2];
#pragma unroll
  for (float& value : sum) value = 0;
  fence_registers(sum);
  for (int n = 0; n < count; ++n) {
    const uint32_t stage = tiles.wait(n);
    const uint64_t left = descriptor(stage, kLeadingUnread, kPatternBytes);  // 64 rows: there is no next group
    const uint64_t right = descriptor(stage + right_offset, W::kWidth * kPixelBytes, kPatternBytes);
    wgmma_fence();
#pragma unroll
    for (int row = 0; row < W::kRows; ++row) {
      wgmma<T, kColumns, 1, 1>(sum, advanced(left, row * W::kColumns * kPixelBytes),
                               advanced(right, row * W::kRowBytes));
    }
    wgmma_commit();
    wgmma_wait<1>();  // the tile before this one
    if (n > 0) tiles.release(n - 1);
  }
  wgmma_wait<0>();
  fence_registers(sum);
  if (p.accumulate && count == 0) return;

  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane / 4;
  const int64_t matrix =
      (int64_t{static_cast<int>(blockIdx.x)} * p.maps + static_cast<int>(blockIdx.y)) * kTaps + window_column;
  float* partials = p.partials + matrix * kChannels * kChannels + row * kChannels + 2 * (lane % 4);
#pragma unroll
  for (int k = 0; k < 3; ++k, partials += 3 * kChannels * kChannels) {
    constexpr int kPairs = kChannels / 8 * 2;
    float2* at[kPairs];
    float2 before[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      at[i] = reinterpret_cast<float2*>(partials + i % 2 * 8 * kChannels + i / 2 * 8);
      before[i] = p.accumulate ? *at[i] : float2{0, 0};
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float* own = sum + 2 * (k * kPairs + i);
      *at[i] = {before[i].x + own[0], before[i].y + own[1]};
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 1) weight_gradient_kernel(const __grid_constant__ Parameters p) {
  if constexpr (kHopper) {
    SHARED_MEMORY(shared);
    const uint32_t base = shared_address(shared);
    const typename S::Tiles tiles{base, base + S::Tiles::kBytes};
    if (threadIdx.x == 0) {
      tiles.init();
      fence_barrier_init();
    }
    __syncthreads();
    const int warpgroup = warpgroup_index();
    if (warpgroup == kConsumers) {
      setmaxnreg_dec<Registers<kConsumers>::kProducer>();
      if (threadIdx.x % kWarpgroup < 32 && elect_one()) produce<S>(p, tiles);
    } else {
      setmaxnreg_inc<Registers<kConsumers>::kConsumer>();
      consume<T, S>(p, tiles, warpgroup);
    }
  }
}

template <class S>
Tiling tiles_of(const WeightGradient& g) {
  return Tiling(g.size.batch, g.size.height, g.size.width, S::W::kRows, S::W::kColumns);
}

template <class S>
void start(const WeightGradient& g, cudaStream_t stream) {
  using W = typename S::W;
  const Size all = {g.size.batch * g.maps, g.size.height, g.size.width};
  const Parameters p{pixels_map(g.left, all.batch, all.height, all.width, kChannels, W::kRows, W::kColumns),
                     window_map<W>(g.right, all),
                     tiles_of<S>(g),
                     g.size.batch,
                     g.maps,
                     g.splits,
                     g.accumulate,
                     g.partials};
  const auto kernel =
      g.type == Type::kBFloat16 ? weight_gradient_kernel<BFloat16, S> : weight_gradient_kernel<Float16, S>;
  launch(kernel, dim3(g.splits, g.maps), kThreads, S::kBytes, stream, p);
}

// One wave of blocks, each with a tile at least.
template <class S>
int splits(const WeightGradient& g) {
  return std::min(std::max(multiprocessors() / g.maps, 1), tiles_of<S>(g).count);
}

using Gradient1 = Chosen<Shape<Window<1, 8, 16>, 5>, Shape<Window<1, 16, 16>, 3>, Shape<Window<1, 4, 16>, 8>,
                         Shape<Window<1, 4, 16, true>, 5>>;
using Gradient2 = Chosen<Shape<Window<2, 4, 16>, 4>, Shape<Window<2, 8, 16>, 2>, Shape<Window<2, 2, 16>, 7>,
                         Shape<Window<2, 4, 16, true>, 3>>;

}  // namespace

void weight_gradient(const WeightGradient& g, cudaStream_t stream) {
  g.stride == 1 ? start<Gradient1>(g, stream) : start<Gradient2>(g, stream);
}

int weight_gradient_splits(const WeightGradient& g) {
  return g.stride == 1 ? splits<Gradient1>(g) : splits<Gradient2>(g);
}

}  // namespace cmslap::cuda::sm90
