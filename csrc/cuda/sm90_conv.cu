// 3×3 convolutions of 64 channels with everything that follows them, for Hopper: stride 1 (forward and data gradient)
// and stride 2 (data gradient of the transposed convolution).
//
// sum[64 channels, pixels] of a tile of 32 × 8 pixels is 9 taps × 4 steps of wgmma m64n256k16, weights on the left. All
// weights (72 KiB) stay in shared memory for the block's life; a tile's pixels come as one box of 34 × 10 that serves
// all nine taps. Two consumers take turns: one multiplies while the other applies the epilogue.
//
// A tile, in cycles of a multiprocessor (stride 1; 4096 FLOP and 128 bytes of shared memory a cycle):
//   tensor cores        256 · 73,728 FLOP / 4096                                       4608
//   shared memory       36 · (2 KiB weights + 8 KiB pixels) + box 42.5 KiB + result 2 · 32 KiB  3740 (81 %)
//     and, with an auxiliary map, 2 · 32 KiB                                            4250 (92 %)
//   L2, about 40 bytes a cycle: box 42.5 + 32 (+ 32) KiB                               1910 (2730)
//   device memory, 18 bytes a cycle at 4.3 TB/s: 32 + 32 (+ 32) KiB                    3640 (5460)
//   a consumer's epilogue, 6 instructions for each of 128 sums, 4 warps on 4 schedulers  800 to 1500
// m64n128k16 would read the weights twice as often: 4320 and 4830 cycles of shared memory.
#include "implementations.h"
#include "sm90_block.h"

namespace cmslap::cuda::sm90 {
namespace {

enum class Epilogue {
  kActivate,       // φ(sum + bias)
  kSkip,           // φ(sum + bias + aux)
  kDifferentiate,  // φ'(aux) · sum
};

struct Parameters {
  TensorMap pixels, matrices, aux, result;
  Tiling tiles;
  int height = 0, width = 0;  // of the result
  bool flipped = false, stores = false;
  float slope = 1;
  const float* bias = nullptr;  // [64], optional
  const uint4* skip = nullptr;  // with total
  uint4* total = nullptr;       // [N, H, W, 64], optional: result + skip
  float* sums = nullptr;        // [blocks · consumers, 64], optional
};

// How a kernel is cut: the windows of its tiles, how many of their boxes are on their way, and how many of the block's
// tiles ahead of those the L2 cache is told of.
template <class W_, int kConsumers_, int kStages_, int kAhead_>
struct Shape {
  using W = W_;
  using Boxes = Pipeline<kStages_, W::kBoxStride, 4>;
  static constexpr int kConsumers = kConsumers_, kAhead = kAhead_;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static_assert(W::kColumns == 8, "eight pixels of a row are a group of eight columns of the right operand");
  static_assert(W::kRows % 2 == 0, "stmatrix stores two rows");

  static constexpr int kBoxes = kWeightBytes;
  static constexpr int kResults = kBoxes + Boxes::kBytes;
  static constexpr int kBarriers = kResults + kConsumers * W::kTileBytes;
  static constexpr int kBytes = kBarriers + (Boxes::kBarriers + 1 + 3 * kConsumers) * kBarrierBytes;
  static_assert(kBytes <= kSharedMemory);
};

// Shared memory of a block.
template <class S>
struct SharedStorage {
  uint32_t base;

  DEVICE uint32_t matrices() const { return base; }
  DEVICE typename S::Boxes boxes() const { return {base + S::kBoxes, base + S::kBarriers}; }
  DEVICE uint32_t result(int consumer) const { return base + S::kResults + consumer * S::W::kTileBytes; }

  DEVICE uint32_t matrices_full() const { return barrier(0); }
  DEVICE uint32_t turn(int consumer) const { return barrier(1 + consumer); }
  // The auxiliary map comes where the tile's result will be.
  DEVICE uint32_t aux_full(int consumer) const { return barrier(1 + S::kConsumers + consumer); }
  DEVICE uint32_t result_empty(int consumer) const { return barrier(1 + 2 * S::kConsumers + consumer); }

  DEVICE void init() const {
    boxes().init();
    mbarrier_init(matrices_full(), 1);
    for (int consumer = 0; consumer < S::kConsumers; ++consumer) {
      mbarrier_init(turn(consumer), 4);
      mbarrier_init(aux_full(consumer), 1);
      mbarrier_init(result_empty(consumer), 1);
    }
    fence_barrier_init();
  }

 private:
  DEVICE uint32_t barrier(int i) const { return base + S::kBarriers + (S::Boxes::kBarriers + i) * kBarrierBytes; }
};

template <class S, Epilogue kEpilogue>
DEVICE void prefetch(const Parameters& p, int number) {
  using W = typename S::W;
  if (number >= p.tiles.count) return;
  const Tile tile = p.tiles[number];
  for (int part = 0; part < W::kParts; ++part) {
    tma_prefetch_4d(p.pixels, W::channel(part), W::left(tile, part), W::top(tile), tile.image);
  }
  if (kEpilogue != Epilogue::kActivate) tma_prefetch_4d(p.aux, 0, tile.left, tile.top, tile.image);
}

// The block's tiles are blockIdx.x, blockIdx.x + gridDim.x, ...; the consumers take them in turns.
template <class S, Epilogue kEpilogue>
DEVICE void produce(const Parameters& p, const SharedStorage<S>& storage) {
  using W = typename S::W;
  load_matrices(storage.matrices(), p.matrices, storage.matrices_full(), p.flipped);
  for (int n = 0, number = blockIdx.x; number < p.tiles.count; ++n, number += gridDim.x) {
    const Tile tile = p.tiles[number];
    for (int part = 0; part < W::kParts; ++part) {
      const uint32_t box = n * W::kParts + part;
      const uint32_t stage = storage.boxes().fill(box, W::kBoxBytes);
      load_box<W>(stage, p.pixels, storage.boxes().full(box), tile, part);
    }
    if (S::kAhead > 0) prefetch<S, kEpilogue>(p, number + S::kAhead * gridDim.x);
    if (kEpilogue != Epilogue::kActivate) {
      const int consumer = n % S::kConsumers;
      mbarrier_wait(storage.result_empty(consumer), n / S::kConsumers % 2 ^ 1);
      mbarrier_arrive_expect_tx(storage.aux_full(consumer), W::kTileBytes);
      tma_load_4d(storage.result(consumer), p.aux, storage.aux_full(consumer), 0, tile.left, tile.top, tile.image);
    }
  }
}

// sum[64, kPixels] of the block's n-th tile. Consumers follow each other, so that one always multiplies.
template <class T, class S>
DEVICE void multiply(float (&sum)[S::W::kPixels / 2], const SharedStorage<S>& storage, int n) {
  using W = typename S::W;
  const auto boxes = storage.boxes();
  const uint64_t matrices = descriptor(storage.matrices(), kLeadingUnread, kPatternBytes);
  const int consumer = n % S::kConsumers, turn = n / S::kConsumers;
  mbarrier_wait(storage.turn(consumer), (turn + (consumer == 0)) % 2);  // the first needs no one before it
  fence_registers(sum);
#pragma unroll
  for (int part = 0; part < W::kParts; ++part) {
    const uint32_t box = n * W::kParts + part;
    const uint64_t pixels = descriptor(boxes.wait(box), kLeadingUnread, W::kRowBytes);
    wgmma_fence();
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if (W::part(tap) != part) continue;
#pragma unroll
      for (int step = 0; step < kPixelBytes / kStepBytes; ++step) {
        wgmma<T, W::kPixels>(sum, advanced(matrices, tap * kMatrixBytes + step * kStepBytes),
                             advanced(pixels, W::offset(tap) + step * kStepBytes), tap + step > 0);
      }
    }
    wgmma_commit();
    if (part > 0) {
      wgmma_wait<1>();
      boxes.release(box - 1);
    }
  }
  if (leads_warp()) mbarrier_arrive(storage.turn((consumer + 1) % S::kConsumers));
  wgmma_wait<0>();
  boxes.release(n * W::kParts + W::kParts - 1);
  fence_registers(sum);
}

// What becomes of the sums of two neighbouring pixels.
template <class T, Epilogue kEpilogue>
DEVICE float2 apply_epilogue(float2 value, uint32_t aux, float bias, float slope) {
  const float2 other = kEpilogue == Epilogue::kActivate ? float2{0, 0} : unpack<T>(aux);
  float2 sign = other;
  if (kEpilogue != Epilogue::kDifferentiate) {
    value = {value.x + bias, value.y + bias};
    if (kEpilogue == Epilogue::kSkip) value = {value.x + other.x, value.y + other.y};
    sign = value;
  }
  return {sign.x > 0 ? value.x : value.x * slope, sign.y > 0 ? value.y : value.y * slope};
}

// total = result + skip of a tile whose result lies in shared memory, 16 bytes at a time.
template <class T, class W>
DEVICE void add_skip(const Parameters& p, const uint8_t* result, const Tile& tile) {
  constexpr int kPieces = kPixelBytes / 16, kRowsAtOnce = kWarpgroup / kPieces / W::kColumns;
  constexpr int kTimes = W::kRows / kRowsAtOnce, kBatch = kTimes < 8 ? kTimes : 8;  // loads on their way
  static_assert(kTimes % kBatch == 0);
  const int thread = threadIdx.x % kWarpgroup;
  const int column = thread / kPieces % W::kColumns, piece = thread % kPieces;
  const bool inside = tile.left + column < p.width;
  for (int first = thread / kPieces / W::kColumns; first < W::kRows; first += kBatch * kRowsAtOnce) {
    const int64_t at =
        ((int64_t{tile.image} * p.height + tile.top + first) * p.width + tile.left + column) * kPieces + piece;
    const int64_t step = int64_t{kRowsAtOnce} * p.width * kPieces;
    uint4 skip[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (inside && tile.top + first + i * kRowsAtOnce < p.height) skip[i] = p.skip[at + i * step];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = first + i * kRowsAtOnce;
      if (!inside || tile.top + row >= p.height) continue;
      const uint32_t offset = swizzled((row * W::kColumns + column) * kPixelBytes + piece * 16);
      const uint4 own = *reinterpret_cast<const uint4*>(result + offset);
      const uint32_t a[4] = {own.x, own.y, own.z, own.w}, b[4] = {skip[i].x, skip[i].y, skip[i].z, skip[i].w};
      uint32_t both[4];
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const float2 left = unpack<T>(a[word]), right = unpack<T>(b[word]);
        both[word] = pack<T>(left.x + right.x, left.y + right.y);
      }
      p.total[at + i * step] = {both[0], both[1], both[2], both[3]};
    }
  }
}

// Where a thread's sums belong: of each row of a tile two channels, `half` 0 and 1, of two neighbouring pixels,
// sum[4·row + 2·half + pixel].
struct Place {
  int warp, lane;

  DEVICE Place() : warp(threadIdx.x % kWarpgroup / 32), lane(threadIdx.x % 32) {}
  DEVICE int channel(int half) const { return 16 * warp + lane / 4 + 8 * half; }
  DEVICE int column(int pixel) const { return 2 * (lane % 4) + pixel; }
};

// Turns a tile's sums into results, which go to shared memory at `result`, in place of the auxiliary map.
template <class T, class W, Epilogue kEpilogue>
DEVICE void apply_epilogue(float (&sum)[W::kPixels / 2], const Place& place, const float (&bias)[2], float slope,
                           uint32_t result) {
#pragma unroll
  for (int row = 0; row < W::kRows; row += 2) {
    const uint32_t address = result + matrix_row(place.warp, place.lane) + row * kPatternBytes;
    uint32_t words[4];  // channels and the 8 above them, of this row and of the next
    if (kEpilogue != Epilogue::kActivate) ldmatrix_x4_trans(words, address);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& x = sum[4 * row + 2 * i];
      float& y = sum[4 * row + 2 * i + 1];
      const float2 value = apply_epilogue<T, kEpilogue>({x, y}, words[i], bias[i % 2], slope);
      x = value.x, y = value.y;
      words[i] = pack<T>(x, y);
    }
    stmatrix_x4_trans(address, words);
  }
}

// Adds a tile's results, where they lie inside the map, to the thread's totals of its two channels.
template <class W>
DEVICE void add_results(const float (&results)[W::kPixels / 2], const Place& place, const Parameters& p,
                        const Tile& tile, float (&totals)[2]) {
  const bool x_inside = tile.left + place.column(0) < p.width, y_inside = tile.left + place.column(1) < p.width;
#pragma unroll
  for (int row = 0; row < W::kRows; ++row) {
    if (tile.top + row >= p.height) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      totals[half] += x_inside ? results[4 * row + 2 * half] : 0.0f;
      totals[half] += y_inside ? results[4 * row + 2 * half + 1] : 0.0f;
    }
  }
}

// A consumer's row of sums: the totals of the four lanes that share a channel.
DEVICE void write_sums(float* row, const Place& place, const float (&totals)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = totals[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    if (place.lane % 4 == 0) row[place.channel(half)] = total;
  }
}

template <class T, class S, Epilogue kEpilogue>
DEVICE void consume(const Parameters& p, const SharedStorage<S>& storage, const uint8_t* shared, int consumer) {
  using W = typename S::W;
  const Place place;
  float bias[2] = {0, 0}, totals[2] = {0, 0}, sum[W::kPixels / 2];
  if (p.bias != nullptr) bias[0] = p.bias[place.channel(0)], bias[1] = p.bias[place.channel(1)];

  mbarrier_wait(storage.matrices_full(), 0);
  for (int n = consumer, number = blockIdx.x + n * gridDim.x; number < p.tiles.count;
       n += S::kConsumers, number += S::kConsumers * gridDim.x) {
    const Tile tile = p.tiles[number];
    multiply<T, S>(sum, storage, n);

    const uint32_t result = storage.result(consumer);
    // At mbarriers either way: at a named barrier the compiler would put off releasing the box until after the
    // epilogue's arithmetic, 343 instructions later.
    const int parity = n / S::kConsumers % 2;
    if (kEpilogue != Epilogue::kActivate) {
      mbarrier_wait(storage.aux_full(consumer), parity);
    } else {
      if (leads_warpgroup()) {
        tma_store_wait_read<0>();
        mbarrier_arrive(storage.result_empty(consumer));
      }
      mbarrier_wait(storage.result_empty(consumer), parity);
    }
    apply_epilogue<T, W, kEpilogue>(sum, place, bias, p.slope, result);
    fence_proxy_async();
    consumer_sync(consumer);
    if (leads_warpgroup() && p.stores) {
      tma_store_4d(p.result, result, 0, tile.left, tile.top, tile.image);
      tma_store_commit();
    }

    if (p.sums != nullptr) add_results<W>(sum, place, p, tile, totals);
    if (kEpilogue == Epilogue::kDifferentiate && p.total != nullptr) {
      add_skip<T, W>(p, shared + S::kResults + consumer * W::kTileBytes, tile);
      consumer_sync(consumer);
    }
    if (kEpilogue != Epilogue::kActivate && leads_warpgroup()) {
      tma_store_wait_read<0>();
      mbarrier_arrive(storage.result_empty(consumer));
    }
  }
  if (leads_warpgroup()) tma_store_wait<0>();
  if (p.sums != nullptr) {
    const int row = static_cast<int>(blockIdx.x) * S::kConsumers + consumer;
    write_sums(p.sums + int64_t{row} * kChannels, place, totals);
  }
}

template <class T, class S, Epilogue kEpilogue>
__global__ void __launch_bounds__(S::kThreads, 1) conv_kernel(const __grid_constant__ Parameters p) {
  if constexpr (kHopper) {
    SHARED_MEMORY(shared);
    const SharedStorage<S> storage{shared_address(shared)};
    if (threadIdx.x == 0) storage.init();
    __syncthreads();
    const int warpgroup = warpgroup_index();
    if (warpgroup == S::kConsumers) {
      setmaxnreg_dec<Registers<S::kConsumers>::kProducer>();
      if (threadIdx.x % kWarpgroup < 32 && elect_one()) produce<S, kEpilogue>(p, storage);
    } else {
      setmaxnreg_inc<Registers<S::kConsumers>::kConsumer>();
      consume<T, S, kEpilogue>(p, storage, shared, warpgroup);
    }
  }
}

template <class S>
Tiling tiles_of(Size size) {
  return Tiling(size.batch, size.height, size.width, S::W::kRows, S::W::kColumns);
}
template <class S>
int blocks_of(Size size) {
  return std::min(tiles_of<S>(size).count, multiprocessors());
}

template <class T, class S, Epilogue kEpilogue>
void start(const Parameters& p, Size size, cudaStream_t stream) {
  launch(conv_kernel<T, S, kEpilogue>, blocks_of<S>(size), S::kThreads, S::kBytes, stream, p);
}
template <class S, Epilogue kEpilogue>
void start(Type type, const Parameters& p, Size size, cudaStream_t stream) {
  type == Type::kBFloat16 ? start<BFloat16, S, kEpilogue>(p, size, stream)
                          : start<Float16, S, kEpilogue>(p, size, stream);
}

template <class S>
Parameters parameters(const void* pixels, const void* matrices, const void* aux, void* result, Size size) {
  using W = typename S::W;
  const auto map_of_tiles = [size](const void* map) {
    if (map == nullptr) return TensorMap{};
    return pixels_map(map, size.batch, size.height, size.width, kChannels, W::kRows, W::kColumns);
  };
  Parameters p{window_map<W>(pixels, size), matrices_map(matrices), map_of_tiles(aux), map_of_tiles(result),
               tiles_of<S>(size)};
  p.height = size.height, p.width = size.width, p.stores = result != nullptr;
  return p;
}

using Conv1 = Chosen<Shape<Window<1, 32, 8>, 2, 2, 1>,         // m64n256k16
                     Shape<Window<1, 32, 8>, 2, 2, 0>,         // without telling L2
                     Shape<Window<1, 16, 8>, 2, 4, 0>,         // m64n128k16, smaller tiles, more of them on their way
                     Shape<Window<1, 16, 8, true>, 2, 5, 0>>;  // three boxes a tile
using Conv2 = Chosen<Shape<Window<2, 16, 8>, 2, 3, 1>, Shape<Window<2, 16, 8>, 2, 3, 0>,
                     Shape<Window<2, 8, 8>, 2, 6, 0>, Shape<Window<2, 16, 8, true>, 2, 3, 0>>;

// Whether this file was compiled for compute capability 9.0; then it was for 9.0a (setup.py).
constexpr bool compiled() {
#ifdef __CUDA_ARCH_LIST__
  for (int architecture : {__CUDA_ARCH_LIST__})
    if (architecture == 900) return true;
  return false;
#else
  return true;  // by no nvcc: for the model
#endif
}

}  // namespace

bool serves(int in, int out) {
  return compiled() && in == kChannels && out == kChannels &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

void conv(const Conv& c, cudaStream_t stream) {
  Parameters p = parameters<Conv1>(c.x, c.matrices, c.saved != nullptr ? c.saved : c.skip, c.y, c.size);
  p.flipped = c.flipped, p.slope = c.slope, p.bias = c.bias, p.sums = c.sums;
  p.skip = static_cast<const uint4*>(c.skip), p.total = static_cast<uint4*>(c.total);
  if (c.saved != nullptr) {
    start<Conv1, Epilogue::kDifferentiate>(c.type, p, c.size, stream);
  } else if (c.skip != nullptr) {
    start<Conv1, Epilogue::kSkip>(c.type, p, c.size, stream);
  } else {
    start<Conv1, Epilogue::kActivate>(c.type, p, c.size, stream);
  }
}

int conv_sum_rows(const Conv& c) { return blocks_of<Conv1>(c.size) * Conv1::kConsumers; }

void transposed_conv_gradient(const TransposedConvGradient& c, cudaStream_t stream) {
  Parameters p = parameters<Conv2>(c.grad, c.matrices, c.saved, c.y, c.size);
  p.sums = c.sums;
  if (c.saved != nullptr) {
    p.slope = c.slope;
    start<Conv2, Epilogue::kDifferentiate>(c.type, p, c.size, stream);
  } else {
    start<Conv2, Epilogue::kActivate>(c.type, p, c.size, stream);
  }
}

int transposed_conv_gradient_sum_rows(const TransposedConvGradient& c) {
  return blocks_of<Conv2>(c.size) * Conv2::kConsumers;
}

}  // namespace cmslap::cuda::sm90
