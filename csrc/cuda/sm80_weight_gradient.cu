// Weight gradient by mma.sync, of convolutions (stride 1) and transposed ones (stride 2). README.md explains it.
//
// A thread block makes a 64×64 block of all nine matrices of one map, 36,864 sums in registers, over its split of the
// pixels: no sum leaves the block before its last tile. The 12 warps are three columns of taps × four quarters of 32×32
// channels. A warp goes down a tile row by row: a row's 16 pixels of `right` under its tap column, loaded once, meet
// the one to three rows of `left` that see them, which stay in registers: 4 ldmatrix for 24 mma.
//
// For 64×64 channels and a tile of 8×16 pixels: 9.4 MFLOP, 4,608 clocks of an A100's multiprocessor, 39.4 KB copied
// from L2 (8.6 B a clock); 12 · 36 ldmatrix of 512 B, 48 B a clock of shared memory's 128. Two tiles lie in shared
// memory, one multiplied while the other is copied: 78,848 B, and 94,720 B for stride 2, whose tiles have 4×16 pixels.
#include <algorithm>

#include "implementations.h"
#include "indexing_sm80.h"
#include "launch.h"
#include "vector_io.h"

namespace cmslap::cuda::sm80 {

constexpr int kGradientThreads = 32 * kGradientWarps;

struct WeightGradientParameters {
  int batch, height, width;  // of left
  int rows, columns;
  Tiling tiles;
  const uint16_t *left, *right;
  bool accumulate;
  float* partials;
};

// Of a warp: three taps of a column of the window × 32 rows × 32 columns.
using GradientSums = float[3][2][4][4];

// Copies the pixels of both maps that a tile needs, 64 channels of each; zeros stand outside the maps and beyond their
// channels. In parts, to be issued between products: each thread copies the same piece of a pixel a part.
template <int kStride>
struct TileCopy {
  using Halo = RightHalo<kStride>;
  static constexpr int kPixels = kGradientThreads / kGradientPieces;  // of a part
  static constexpr int kLeftParts = (Halo::kRows * kTileWidth + kPixels - 1) / kPixels;
  static constexpr int kRightParts = (Halo::kHeight * Halo::kWidth + kPixels - 1) / kPixels;
  static constexpr int kParts = kLeftParts + kRightParts;

  const WeightGradientParameters& p;
  uint32_t to;
  Tile tile;
  int row, column;  // the block's first
  bool wanted;

  DEVICE void part(int number) const {
    const bool of_left = number < kLeftParts;
    const int thread = afresh(threadIdx.x);  // the sums leave no registers for the places of a thread's pixels
    const int pixel = (of_left ? number : number - kLeftParts) * kPixels + thread / kGradientPieces;
    const int piece = thread % kGradientPieces;
    if (of_left)
      copy<1>(pixel, piece, Halo::kRows, kTileWidth, p.left, row, p.rows, 0, to,
              [](int y, int x, int piece) { return left_offset(y, x, piece); });
    else
      copy<kStride>(pixel, piece, Halo::kHeight, Halo::kWidth, p.right, column, p.columns, Halo::kPadding,
                    to + Halo::kLeftBytes, [](int y, int x, int piece) { return Halo::offset(y, x, piece); });
  }
  DEVICE void all() const {
#pragma unroll 1
    for (int number = 0; number < kParts; ++number) part(number);
  }

 private:
  // A piece of pixel number `pixel` of the rectangle height × width; the map is kScale times as large as `left`.
  template <int kScale, class Offset>
  DEVICE void copy(int pixel, int piece, int height, int width, const uint16_t* map, int first_channel, int channels,
                   int padding, uint32_t start, Offset offset) const {
    const int i = pixel / width, j = pixel - i * width, channel = first_channel + piece * kPieceChannels;
    const int y = kScale * tile.top - padding + i, x = kScale * tile.left - padding + j;
    const bool valid = y >= 0 && y < kScale * p.height && x >= 0 && x < kScale * p.width && channel < channels;
    const int64_t image = int64_t{blockIdx.y} * p.batch + tile.image;
    const int64_t first = image * (kScale * kScale * p.height * p.width), place = y * (kScale * p.width) + x;
    const int64_t element = valid ? (first + place) * channels + channel : 0;
    cp_async_16_if(wanted && pixel < height * width, start + offset(i, j, piece), map + element, valid);
  }
};

// A row of `left`, transposed: 32 channels × 16 pixels.
struct LeftFragments {
  uint32_t words[2][4];

  DEVICE void load(uint32_t address, int row_bytes) {
    ldmatrix_x4_trans(words[0], address + row_bytes);
    ldmatrix_x4_trans(words[1], (address ^ kSecondHalf) + row_bytes);
  }
};

// Where a thread is among the operands: its tap column, the first of its warp's 32 channels, and what ldmatrix needs
// for the first 16 of them, in bytes from the start of a tile of either map.
template <int kStride>
struct GradientPlace {
  int column, row_channel, column_channel;
  uint32_t left, right;

  DEVICE explicit GradientPlace(int thread)
      : column(column_of_warp(thread / 32)),
        row_channel(32 * row_half_of_warp(thread / 32)),
        column_channel(32 * column_half_of_warp(thread / 32)) {
    const int lane = thread % 32;
    left = left_offset(0, left_pixel_of_lane(lane), row_channel / 8 + left_piece_of_lane(lane));
    right = RightHalo<kStride>::offset(0, kStride * right_pixel_of_lane(lane) + column,
                                       column_channel / 8 + right_piece_of_lane(lane));
  }
};

// Products of a row of `right` with the row of `left` whose tap k it is.
template <class T>
DEVICE void multiply_row(const LeftFragments& left, const uint32_t (&right)[2][4], float (&sums)[2][4][4]) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t column[2] = {right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]};
      mma_m16n8k16<T>(sums[m][n], left.words[m], column);
    }
}

// The next tile's copies are issued between the first of the products, so that they have the rest of the time to
// arrive.
template <class T, int kStride>
DEVICE void multiply_tile(uint32_t left_tile, const GradientPlace<kStride>& place, const TileCopy<kStride>& copy,
                          GradientSums& sums) {
  using Halo = RightHalo<kStride>;
  constexpr int kCopying = 4;  // rows, the first, while fewest fragments are in registers
  constexpr int kLeftRow = kTileWidth * kGradientRowBytes, kRightRow = Halo::kRowPlaces * kGradientRowBytes;
  const uint32_t left_address = left_tile + place.left, right_address = left_tile + Halo::kLeftBytes + place.right;
  LeftFragments left[3];  // the rows last loaded
#pragma unroll
  for (int i = 0; i < Halo::kHeight; ++i) {  // rows of `right`
    if (i % kStride == 0 && i / kStride < Halo::kRows) left[i / kStride % 3].load(left_address, i / kStride * kLeftRow);
    uint32_t right[2][4];
    ldmatrix_x4_trans(right[0], right_address + i * kRightRow);
    ldmatrix_x4_trans(right[1], (right_address ^ kSecondHalf) + i * kRightRow);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const int r = (i - k) / kStride;
      if (i >= k && (i - k) % kStride == 0 && r < Halo::kRows) multiply_row<T>(left[r % 3], right, sums[k]);
    }
#pragma unroll
    for (int part = i; i < kCopying && part < TileCopy<kStride>::kParts; part += kCopying) copy.part(part);
  }
}

template <int kStride>
DEVICE void write_partials(const WeightGradientParameters& p, int block_row, int block_column,
                           const GradientSums& sums) {
  const GradientPlace<kStride> place(afresh(threadIdx.x));
  const int lane = threadIdx.x % 32;
  float* matrices = p.partials + (int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * 9 * p.rows * p.columns;
#pragma unroll
  for (int k = 0; k < 3; ++k)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = block_row + place.row_channel + 16 * m + 8 * half + lane / 4;
          const int column = block_column + place.column_channel + 8 * n + lane % 4 * 2;
          if (row >= p.rows || column >= p.columns) continue;
          float2* at =
              reinterpret_cast<float2*>(matrices + (int64_t{3 * k + place.column} * p.rows + row) * p.columns + column);
          float2 value = make_float2(sums[k][m][n][2 * half], sums[k][m][n][2 * half + 1]);
          if (p.accumulate) {
            value.x += at->x;
            value.y += at->y;
          }
          *at = value;
        }
}

// Grid: splits, maps, blocks of 64×64 channels.
template <class T, int kStride>
__global__ void __launch_bounds__(kGradientThreads, 1)
    weight_gradient_kernel(const __grid_constant__ WeightGradientParameters p) {
  SHARED_MEMORY(smem);
  using Halo = RightHalo<kStride>;
  constexpr int kStageBytes = Halo::kLeftBytes + Halo::kBytes;
  const uint32_t stages = shared_address(smem);
  const int column_blocks = ceil_div(p.columns, kGradientChannels);
  const int block_row = blockIdx.z / column_blocks * kGradientChannels;
  const int block_column = blockIdx.z % column_blocks * kGradientChannels;
  const GradientPlace<kStride> place(threadIdx.x);
  const bool busy = block_row + place.row_channel < p.rows && block_column + place.column_channel < p.columns;

  const auto tile_copy = [&](int number, int stage) {
    return TileCopy<kStride>{
        p, stages + stage * kStageBytes, p.tiles[number], block_row, block_column, number < p.tiles.count};
  };

  GradientSums sums = {};
  int stage = 0;
  tile_copy(blockIdx.x, 0).all();
  cp_async_commit();
  for (int number = blockIdx.x; number < p.tiles.count; number += gridDim.x, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has arrived, and nobody reads the last one any more
    const TileCopy<kStride> copy = tile_copy(number + gridDim.x, stage ^ 1);
    if (busy)
      multiply_tile<T, kStride>(stages + stage * kStageBytes, place, copy, sums);
    else
      copy.all();
    cp_async_commit();
  }
  write_partials<kStride>(p, block_row, block_column, sums);
}

// ---- Host ----

static int channel_blocks(const WeightGradient& g) {
  return ceil_div(g.rows, kGradientChannels) * ceil_div(g.columns, kGradientChannels);
}

static Tiling tiles(const WeightGradient& g) {
  const int height = g.stride == 1 ? RightHalo<1>::kRows : RightHalo<2>::kRows;
  return Tiling(g.size.batch, g.size.height, g.size.width, height, kTileWidth);
}

template <class T, int kStride>
static void launch_gradient(const WeightGradient& g, cudaStream_t stream) {
  const WeightGradientParameters p{g.size.batch, g.size.height,  g.size.width,    g.rows,       g.columns,
                                   tiles(g),     halves(g.left), halves(g.right), g.accumulate, g.partials};
  launch(weight_gradient_kernel<T, kStride>, dim3(g.splits, g.maps, channel_blocks(g)), dim3(kGradientThreads),
         RightHalo<kStride>::kSharedBytes, stream, p);
}

void weight_gradient(const WeightGradient& g, cudaStream_t stream) {
  const bool bfloat16 = g.type == Type::kBFloat16;
  if (g.stride == 1)
    bfloat16 ? launch_gradient<BFloat16, 1>(g, stream) : launch_gradient<Float16, 1>(g, stream);
  else
    bfloat16 ? launch_gradient<BFloat16, 2>(g, stream) : launch_gradient<Float16, 2>(g, stream);
}

// As many splits as fill the device once, a block a multiprocessor: partials are written and added up a split.
int weight_gradient_splits(const WeightGradient& g) {
  const int max_splits = multiprocessors() / (g.maps * channel_blocks(g));
  return std::clamp(max_splits, 1, tiles(g).count);
}

}  // namespace cmslap::cuda::sm80
