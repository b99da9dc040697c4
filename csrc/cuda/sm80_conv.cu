// 3×3 convolution by mma.sync, with everything that follows it, and the transposed convolution's data gradient, a
// convolution of stride 2. README.md explains the tile and the pipeline.
//
// A thread block of 8 warps keeps to 64 output channels and walks over tiles of 4·kRows × 16 pixels. Shared memory
// holds two slices of 32 input channels: of all nine matrices (36,864 B) and of the tile's halo (20,736 B for 16 rows,
// 11,520 B for 8). While one is multiplied the next is copied, be it of this tile or the first of the next one. With 64
// input channels the two slices of the matrices are all there are: they stay, and only pixels move.
//
// For 64 → 64 channels and a tile of 16×16 pixels: 18.9 MFLOP, 9,216 clocks of an A100's multiprocessor (2,048 FLOP a
// clock) and 18,432 of an A6000's. Copied from L2: 41.5 KB, 4.5 and 2.3 B a clock, a small part of what it delivers. A
// warp takes 4 rows × 16 pixels × 32 channels: for a column of taps and 16 input channels it loads 3 matrices and 6
// rows of pixels once each, 12 ldmatrix of 512 B, and each row meets up to three taps, 48 mma: 64 B a clock and
// multiprocessor, half of what shared memory delivers (loading pixels for every tap would ask for 96). With 2 rows a
// warp it is 10 ldmatrix for 24 mma, 107 B; on an A6000 both are half that.
#include <algorithm>

#include "implementations.h"
#include "launch.h"
#include "sm80_products.h"

namespace cmslap::cuda::sm80 {

struct ConvParameters {
  Map x;
  int height, width, out;  // of the result
  Tiling tiles;
  const uint16_t* matrices;
  bool flipped;
  float slope;
  const float* bias;
  const uint16_t *skip, *saved;
  uint16_t *y, *total;
  float* sums;
};

// One turn of the pipeline: a phase of a slice of input channels of a tile. Stride 1 has one phase, stride 2 four.
template <int kPhases>
struct Step {
  int number, slice, phase;  // number of the tile
  Tile tile;

  DEVICE explicit Step(const Tiling& tiles) : number(blockIdx.x), slice(0), phase(0), tile(tiles[number]) {}
  DEVICE void advance(const Tiling& tiles, int slices) {
    if (++phase < kPhases) return;
    phase = 0;
    if (++slice < slices) return;
    slice = 0;
    number += gridDim.x;
    tile = tiles[number];
  }
};

// Adds the products of a halo tile under the taps, for 16·kHalves input channels. The copies of the next halo
// are issued between the first half of the products: their addresses cost nothing while the tensor cores work, and they
// have the other half of the time to arrive.
template <class T, int kRows, int kHeight, int kWidth, int kHalves, class Copy>
DEVICE void multiply(uint32_t halo, uint32_t matrices, const Taps& taps, const Place& place, const Copy& copy,
                     float (&sums)[kRows][4][4]) {
  constexpr int kCopying = (kHalves * kWidth + 1) / 2;
#pragma unroll
  for (int turn = 0; turn < kHalves * kWidth; ++turn) {
    const int half = turn / kWidth, l = turn % kWidth;
    MatrixFragments fragments[kHeight];
#pragma unroll
    for (int k = 0; k < kHeight; ++k)
      fragments[k].load(matrices + taps.number(k, l) * kMatrixBytes + (place.matrix ^ half * kSecondHalf));
    const uint32_t column = halo + (place.pixels[l] ^ half * kSecondHalf);
#pragma unroll
    for (int i = 0; i < kRows + kHeight - 1; ++i) {
      uint32_t pixels[4];
      ldmatrix_x4(pixels, column + i * kPitch * kRowBytes);
#pragma unroll
      for (int k = 0; k < kHeight; ++k)
        if (i - k >= 0 && i - k < kRows) fragments[k].template multiply<T>(pixels, sums[i - k]);
      if (i == 0 && turn < kCopying) {
#pragma unroll
        for (int part = turn; part < Copy::parts(all_taps()); part += kCopying) copy.part(part);
      }
    }
  }
}

template <class T, int kRows, int kHeight, int kWidth, class Copy>
DEVICE void multiply(uint32_t halo, uint32_t matrices, const Taps& taps, const Place& place, int channels,
                     const Copy& copy, float (&sums)[kRows][4][4]) {
  if (channels > 16)
    multiply<T, kRows, kHeight, kWidth, 2>(halo, matrices, taps, place, copy, sums);
  else
    multiply<T, kRows, kHeight, kWidth, 1>(halo, matrices, taps, place, copy, sums);
}

template <class T, int kRows, int kStride, class Copy>
DEVICE void multiply_phase(int phase, uint32_t halo, uint32_t matrices, const Place& place, int channels,
                           const Copy& copy, float (&sums)[kRows][4][4]) {
  if constexpr (kStride == 1) {
    multiply<T, kRows, 3, 3>(halo, matrices, all_taps(), place, channels, copy, sums);
  } else {
    if (phase == 0) multiply<T, kRows, 2, 2>(halo, matrices, phase_taps(0), place, channels, copy, sums);
    if (phase == 1) multiply<T, kRows, 2, 1>(halo, matrices, phase_taps(1), place, channels, copy, sums);
    if (phase == 2) multiply<T, kRows, 1, 2>(halo, matrices, phase_taps(2), place, channels, copy, sums);
    if (phase == 3) multiply<T, kRows, 1, 1>(halo, matrices, phase_taps(3), place, channels, copy, sums);
  }
}

// A thread's share of a tile's results: for each of its warp's rows two pixels of eight channels.
template <int kRows>
struct Results {
  int64_t first;  // element of its first pixel
  int row, column, channel;
  const ConvParameters& p;

  DEVICE Results(const ConvParameters& p, const Tile& tile, const Place& place, int block_channel)
      : row(tile.top + place.row),
        column(tile.left + result_pixel(threadIdx.x % 32, 0)),
        channel(block_channel + place.channel + eight_of_lane(threadIdx.x % 32)),
        p(p) {
    first = ((int64_t{tile.image} * p.height + row) * p.width + column) * p.out + channel;
  }
  DEVICE bool inside(int r, int half) const {
    return row + r < p.height && column + 8 * half < p.width && channel < p.out;
  }
  DEVICE int64_t element(int r, int half) const { return first + (r * p.width + 8 * half) * p.out; }

  DEVICE void load(const uint16_t* map, uint4 (&values)[kRows][2]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (inside(r, half)) values[r][half] = load_16(map + element(r, half));
  }
};

// Multiplies by φ' of the other values' signs.
DEVICE void apply_slope(float (&values)[8], const float (&signs)[8], float slope) {
#pragma unroll
  for (int c = 0; c < 8; ++c)
    if (!(signs[c] > 0.0f)) values[c] *= slope;
}

// Everything that follows the products. The sums have begun with the bias; `operand` is `saved` where there is one,
// otherwise `skip`.
template <class T, int kRows>
DEVICE void apply_epilogue(const ConvParameters& p, const Results<kRows>& results, const uint4 (&operand)[kRows][2],
                           const float (&sums)[kRows][4][4], float (&column_sums)[8]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!results.inside(r, half)) continue;
      const int64_t element = results.element(r, half);
      float values[8], other[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) values[c] = sums[r][c / 2][2 * half + c % 2];
      if (p.saved != nullptr || p.skip != nullptr) unpack_eight<T>(operand[r][half], other);
      if (p.saved != nullptr) {
        apply_slope(values, other, p.slope);
        if (p.total != nullptr) {
          load_eight<T>(p.skip + element, other);
#pragma unroll
          for (int c = 0; c < 8; ++c) other[c] += values[c];
          store_eight<T>(p.total + element, other);
        }
      } else {
        if (p.skip != nullptr) {
#pragma unroll
          for (int c = 0; c < 8; ++c) values[c] += other[c];
        }
        apply_slope(values, values, p.slope);
      }
      if (p.sums != nullptr) {
#pragma unroll
        for (int c = 0; c < 8; ++c) column_sums[c] += values[c];
      }
      if (p.y != nullptr) store_eight<T>(p.y + element, values);
    }
  }
}

// Adds what the block's threads summed for the same channels, always in the same order, and writes the block's row of
// sums.
DEVICE void write_sums(const ConvParameters& p, float (&column_sums)[8], const Place& place, float* shared) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 64;
#pragma unroll
  for (int c = 0; c < 8; ++c)
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2) column_sums[c] += __shfl_xor_sync(0xffffffff, column_sums[c], apart);
  __syncthreads();  // the last products may still read
  if (lane < 4) {
#pragma unroll
    for (int c = 0; c < 8; ++c)
      shared[group * kBlockChannels + place.channel + eight_of_lane(lane) + c] = column_sums[c];
  }
  __syncthreads();
  const int channel = blockIdx.y * kBlockChannels + threadIdx.x;
  if (threadIdx.x >= kBlockChannels || channel >= p.out) return;
  float sum = 0.0f;
  for (int g = 0; g < kRowGroups; ++g) sum += shared[g * kBlockChannels + threadIdx.x];
  p.sums[int64_t{blockIdx.x} * p.out + channel] = sum;
}

template <class T, int kRows, int kStride>
__global__ void __launch_bounds__(kThreads, 1) conv_kernel(const __grid_constant__ ConvParameters p) {
  SHARED_MEMORY(smem);
  constexpr int kPhases = kStride * kStride, kHaloBytes = halo_bytes(kRows, 2);
  const uint32_t matrices = shared_address(smem), halos = matrices + 2 * kMatricesBytes;
  const int block_channel = blockIdx.y * kBlockChannels;
  const int slices = ceil_div(p.x.channels, kSliceChannels);
  const Place place(kRows);
  const bool busy = block_channel + place.channel < p.out;  // or all 32 output channels are padding

  using Copy = HaloCopy<kRowGroups * kRows>;
  // Slices and halos alternate between two places each, and the matrices of one or two slices are copied only once.
  const auto copy_slice = [&](const Step<kPhases>& step, int turn) {
    const int slice_number = turn / kPhases;
    if (step.phase == 0 && (slices > 2 || slice_number < 2))
      copy_matrices(matrices + slice_number % 2 * kMatricesBytes, p.matrices, p.out, p.x.channels, p.flipped,
                    block_channel, step.slice * kSliceChannels);
  };
  const auto halo_copy = [&](const Step<kPhases>& step, int turn) {
    const Taps taps = kStride == 1 ? all_taps() : phase_taps(step.phase);
    return Copy(halos + turn % 2 * kHaloBytes, p.x, step.tile, taps, step.slice * kSliceChannels,
                step.number < p.tiles.count);
  };

  float bias[8], column_sums[8] = {}, sums[kRows][4][4];
  load_bias(bias, p.bias, block_channel + place.channel + eight_of_lane(threadIdx.x % 32), p.out);
  const uint16_t* first_operand = p.saved != nullptr ? p.saved : p.skip;

  Step<kPhases> step(p.tiles);
  copy_slice(step, 0);
  halo_copy(step, 0).all();
  cp_async_commit();
  for (int turn = 0; step.number < p.tiles.count; ++turn) {
    cp_async_wait<0>();
    __syncthreads();  // this turn's copies have arrived, and nobody reads the last one's any more
    Step<kPhases> next = step;
    next.advance(p.tiles, slices);
    if (next.number < p.tiles.count) copy_slice(next, turn + 1);
    const Copy copy = halo_copy(next, turn + 1);

    if (step.slice == 0 && step.phase == 0) {
#pragma unroll
      for (int i = 0; i < kRows * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] = bias[i / 4 % 4 * 2 + i % 2];
    }
    const bool last = step.slice == slices - 1 && step.phase == kPhases - 1;
    uint4 operand[kRows][2];  // on its way during the last products
    if (last && first_operand != nullptr)
      Results<kRows>(p, step.tile, place, block_channel).load(first_operand, operand);
    if (busy)
      multiply_phase<T, kRows, kStride>(step.phase, halos + turn % 2 * kHaloBytes,
                                        matrices + turn / kPhases % 2 * kMatricesBytes, place,
                                        p.x.channels - step.slice * kSliceChannels, copy, sums);
    else
      copy.all();
    cp_async_commit();
    if (last)
      apply_epilogue<T, kRows>(p, Results<kRows>(p, step.tile, place, block_channel), operand, sums, column_sums);
    step = next;
  }
  if (p.sums != nullptr) write_sums(p, column_sums, place, reinterpret_cast<float*>(smem));
}

// ---- Host ----

// How a launch is cut: rows of pixels a warp takes at a time, and persistent blocks.
struct LaunchShape {
  int rows, blocks;
};

// Taller tiles load less for a product, but may leave multiprocessors idle at the end of a small map, and need more
// shared memory than some devices give a block.
static LaunchShape launch_shape(Size size, int out) {
  const int channel_blocks = ceil_div(out, kBlockChannels);
  const int max_blocks = std::max(1, multiprocessors() / channel_blocks);
  const auto turns = [&](int rows) {
    const Tiling tiles(size.batch, size.height, size.width, kRowGroups * rows, kTileWidth);
    return ceil_div(tiles.count, max_blocks);
  };
  const bool tall_fits = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= conv_shared_bytes(4, 2);
  const int rows = tall_fits && 4 * turns(4) <= 2.5 * turns(2) ? 4 : 2;  // a short tile takes a quarter more a pixel
  const Tiling tiles(size.batch, size.height, size.width, kRowGroups * rows, kTileWidth);
  return {rows, std::min(tiles.count, max_blocks)};
}

template <class T, int kRows, int kStride>
static void launch_conv(ConvParameters p, Size size, int blocks, cudaStream_t stream) {
  p.tiles = Tiling(size.batch, size.height, size.width, kRowGroups * kRows, kTileWidth);
  const dim3 grid(blocks, ceil_div(p.out, kBlockChannels));
  launch(conv_kernel<T, kRows, kStride>, grid, dim3(kThreads), conv_shared_bytes(kRows, 2), stream, p);
}

template <int kStride>
static void launch_conv(Type type, const ConvParameters& p, Size size, cudaStream_t stream) {
  const LaunchShape shape = launch_shape(size, p.out);
  const bool bfloat16 = type == Type::kBFloat16;
  const auto run = shape.rows == 4 ? (bfloat16 ? launch_conv<BFloat16, 4, kStride> : launch_conv<Float16, 4, kStride>)
                                   : (bfloat16 ? launch_conv<BFloat16, 2, kStride> : launch_conv<Float16, 2, kStride>);
  run(p, size, shape.blocks, stream);
}

void conv(const Conv& c, cudaStream_t stream) {
  const ConvParameters p{{halves(c.x), c.size.height, c.size.width, c.in},
                         c.size.height,
                         c.size.width,
                         c.out,
                         Tiling(0, 1, 1, 1, 1),
                         halves(c.matrices),
                         c.flipped,
                         c.slope,
                         c.bias,
                         halves(c.skip),
                         halves(c.saved),
                         halves(c.y),
                         halves(c.total),
                         c.sums};
  launch_conv<1>(c.type, p, c.size, stream);
}

int conv_sum_rows(const Conv& c) { return launch_shape(c.size, c.out).blocks; }

void transposed_conv_gradient(const TransposedConvGradient& g, cudaStream_t stream) {
  const ConvParameters p{{halves(g.grad), 2 * g.size.height, 2 * g.size.width, g.out},
                         g.size.height,
                         g.size.width,
                         g.in,
                         Tiling(0, 1, 1, 1, 1),
                         halves(g.matrices),
                         false,
                         g.saved != nullptr ? g.slope : 1.0f,
                         nullptr,
                         nullptr,
                         halves(g.saved),
                         halves(g.y),
                         nullptr,
                         g.sums};
  launch_conv<2>(g.type, p, g.size, stream);
}

int transposed_conv_gradient_sum_rows(const TransposedConvGradient& g) { return launch_shape(g.size, g.in).blocks; }

}  // namespace cmslap::cuda::sm80
