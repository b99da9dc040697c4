// Transposed convolution of stride 2 by mma.sync: all four phases of a tile in one pass over its pixels. README.md
// explains it.
//
// The pipeline and shared memory are sm80_conv.cu's, with tiles of 8 × 16 input pixels and one more row above and
// column to the left. A warp takes 2 rows × 16 pixels × 32 channels and keeps the sums of all four phases, 128
// registers: tap (k, l) adds to phase (k % 2, l % 2), from the pixel itself or, for k or l of 2, from the one above or
// to the left.
//
// For 64 → 64 channels an input pixel costs 73,728 FLOP and at least 640 B, 128 read and 512 written: at an A100's
// 2,048 FLOP a clock and multiprocessor 36 clocks against 63 for its share of 1.56 TB/s, so memory decides, and every
// output is written once, 16 bytes a lane. Shared memory delivers per 16 input channels 6 fragments of pixels and 18 of
// matrices for 72 mma, 85 B a clock.
#include <algorithm>

#include "implementations.h"
#include "launch.h"
#include "sm80_products.h"

namespace cmslap::cuda::sm80 {

struct TransposedConvParameters {
  Map a;
  int out;
  Tiling tiles;
  const uint16_t* matrices;
  const float* bias;
  uint16_t* y;  // twice as high and wide as a
};

constexpr int kUpRows = 2;  // of a warp
constexpr int kUpHaloBytes = halo_bytes(kUpRows, 1);

using PhaseSums = float[4][kUpRows][4][4];

using UpCopy = HaloCopy<kRowGroups * kUpRows>;

// Adds the products of a halo tile, for 16·kHalves input channels; the next halo's copies are issued between the first
// of them.
template <class T, int kHalves>
DEVICE void multiply_phases(uint32_t halo, uint32_t matrices, const Place& place, const UpCopy& copy, PhaseSums& sums) {
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    uint32_t pixels[kUpRows + 1][2][4];
#pragma unroll
    for (int i = 0; i <= kUpRows; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        ldmatrix_x4(pixels[i][j], halo + (place.pixels[j] ^ half * kSecondHalf) + i * kPitch * kRowBytes);
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      MatrixFragments matrix;
      matrix.load(matrices + tap * kMatrixBytes + (place.matrix ^ half * kSecondHalf));
#pragma unroll
      for (int r = 0; r < kUpRows; ++r)
        matrix.template multiply<T>(pixels[r + 1 - back(tap / 3)][1 - back(tap % 3)], sums[phase_of(tap)][r]);
      if (half == 0 && tap < UpCopy::parts(upsampling_taps())) copy.part(tap);
    }
  }
}

template <class T>
DEVICE void store_phases(const TransposedConvParameters& p, const Tile& tile, const Place& place, int channel,
                         const float (&bias)[8], const PhaseSums& sums) {
  const int row = tile.top + place.row, column = tile.left + result_pixel(threadIdx.x % 32, 0);
#pragma unroll
  for (int r = 0; r < kUpRows; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + r >= p.a.height || column + 8 * half >= p.a.width || channel >= p.out) continue;
      const int64_t above = (int64_t{tile.image} * p.a.height + row + r) * 2;
      uint16_t* corner = p.y + (above * 2 * p.a.width + 2 * (column + 8 * half)) * p.out + channel;
#pragma unroll
      for (int phase = 0; phase < 4; ++phase) {
        float values[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) values[c] = sums[phase][r][c / 2][2 * half + c % 2] + bias[c];
        store_eight<T>(corner + (int64_t{phase / 2} * 2 * p.a.width + phase % 2) * p.out, values);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    transposed_conv_kernel(const __grid_constant__ TransposedConvParameters p) {
  SHARED_MEMORY(smem);
  const uint32_t matrices = shared_address(smem), halos = matrices + 2 * kMatricesBytes;
  const int block_channel = blockIdx.y * kBlockChannels;
  const int slices = ceil_div(p.a.channels, kSliceChannels);
  const Place place(kUpRows);
  const bool busy = block_channel + place.channel < p.out;

  const auto copy_slice = [&](int slice, int turn) {
    if (slices > 2 || turn < 2)
      copy_matrices(matrices + turn % 2 * kMatricesBytes, p.matrices, p.out, p.a.channels, false, block_channel,
                    slice * kSliceChannels);
  };
  const auto halo_copy = [&](int number, int slice, int turn) {
    return UpCopy(halos + turn % 2 * kUpHaloBytes, p.a, p.tiles[number], upsampling_taps(), slice * kSliceChannels,
                  number < p.tiles.count);
  };

  float bias[8];
  const int channel = block_channel + place.channel + eight_of_lane(threadIdx.x % 32);
  load_bias(bias, p.bias, channel, p.out);

  int turn = 0;
  copy_slice(0, 0);
  halo_copy(blockIdx.x, 0, 0).all();
  cp_async_commit();
  for (int number = blockIdx.x; number < p.tiles.count; number += gridDim.x) {
    PhaseSums sums = {};
    for (int slice = 0; slice < slices; ++slice, ++turn) {
      cp_async_wait<0>();
      __syncthreads();  // this slice has arrived, and nobody reads the last one any more
      const bool last = slice == slices - 1;
      const int next_number = last ? number + gridDim.x : number, next_slice = last ? 0 : slice + 1;
      if (next_number < p.tiles.count) copy_slice(next_slice, turn + 1);
      const UpCopy copy = halo_copy(next_number, next_slice, turn + 1);
      const uint32_t halo = halos + turn % 2 * kUpHaloBytes, slice_matrices = matrices + turn % 2 * kMatricesBytes;
      if (!busy)
        copy.all();
      else if (p.a.channels - slice * kSliceChannels > 16)
        multiply_phases<T, 2>(halo, slice_matrices, place, copy, sums);
      else
        multiply_phases<T, 1>(halo, slice_matrices, place, copy, sums);
      cp_async_commit();
    }
    store_phases<T>(p, p.tiles[number], place, channel, bias, sums);
  }
}

void transposed_conv(const TransposedConv& c, cudaStream_t stream) {
  const Tiling tiles(c.size.batch, c.size.height, c.size.width, kRowGroups * kUpRows, kTileWidth);
  const TransposedConvParameters p{
      {halves(c.a), c.size.height, c.size.width, c.in}, c.out, tiles, halves(c.matrices), c.bias, halves(c.y)};
  const int channel_blocks = ceil_div(c.out, kBlockChannels);
  const int max_blocks = std::max(1, multiprocessors() / channel_blocks);
  const dim3 grid(std::min(tiles.count, max_blocks), channel_blocks);
  launch(c.type == Type::kBFloat16 ? transposed_conv_kernel<BFloat16> : transposed_conv_kernel<Float16>, grid,
         dim3(kThreads), conv_shared_bytes(kUpRows, 1), stream, p);
}

}  // namespace cmslap::cuda::sm80
