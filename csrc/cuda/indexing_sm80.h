// Which element goes where in the mma.sync kernels (sm80_*.cu). Everything is constexpr and tested on the host
// (tests/csrc/cuda_indexing_sm80.cpp): nothing here knows of threads or memory.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace cmslap::cuda::sm80 {

// ---- Taps ----

// The rectangle of taps one pass over a halo tile multiplies. Its tap (k, l), first counted from the tile's upper left
// output pixel, reads input pixel (step · i + offset_y + step · k, step · j + offset_x + step · l) for output pixel (i,
// j) and is tap number first + stride_y · k + stride_x · l of the 3×3 kernel.
struct Taps {
  int height, width;
  int step, offset_y, offset_x;
  int first, stride_y, stride_x;

  HOST_DEVICE constexpr int number(int k, int l) const { return first + stride_y * k + stride_x * l; }
};

// All nine, for a convolution of stride 1 and padding 1.
HOST_DEVICE constexpr Taps all_taps() { return {3, 3, 1, -1, -1, 0, 3, 1}; }

// A convolution of stride 2 reads the input pixels of one parity of row and column as a map of their own, with the taps
// of that parity: 2×2, 2×1, 1×2 and 1×1 of them.
HOST_DEVICE constexpr Taps phase_taps(int phase) {
  const int y = phase / 2, x = phase % 2;
  return {2 - y, 2 - x, 2, y, x, 3 * y + x, 6, 2};
}

// The halo tile of a transposed convolution: a row above and a column to the left.
HOST_DEVICE constexpr Taps upsampling_taps() { return {2, 2, 1, -1, -1, 0, 0, 0}; }

// ---- Shared memory: rows of 64 bytes, 32 channels of a pixel or of a matrix row ----

constexpr int kSliceChannels = 32;  // of the input, multiplied at a time
constexpr int kPieceChannels = 8;   // of 16 bytes, what one copy moves and one row of ldmatrix is
constexpr int kPieces = kSliceChannels / kPieceChannels;
constexpr int kRowBytes = 64;

// Where piece `piece` of row `row` lies. Eight successive rows, as ldmatrix reads them, are eight different 16-byte
// columns of the 128 bytes that shared memory delivers at once, for any piece.
HOST_DEVICE constexpr int swizzled(int row, int piece) { return row * kRowBytes + ((piece ^ (row >> 1 & 3)) << 4); }

constexpr int kTileWidth = 16;  // pixels: the rows of an mma
constexpr int kPitch = 18;      // rows of shared memory for a row of a halo tile: up to 16 + 2 pixels

// As swizzled, but the pattern depends on x alone: going down a halo tile is adding a constant. kPitch is even, so that
// pixels one below the other start at the same bank.
HOST_DEVICE constexpr int halo_offset(int y, int x, int piece) { return y * kPitch * kRowBytes + swizzled(x, piece); }
static_assert(kPitch % 2 == 0);

// ---- Fragments of mma.m16n8k16: pixels × input channels times input channels × output channels ----

constexpr int kBlockChannels = 64;  // output channels of a thread block
constexpr int kWarpChannels = 32;   // and of a warp: four products of 8 columns

// Where output channel `channel` of a block lies among the 64 rows of a tap's matrix: row 8·t + 2·q + e of a warp's 32
// is channel 8·q + 2·t + e. So lane q of a quad, which gets columns 2·q and 2·q + 1 of the four products, gets eight
// successive channels: 16 bytes of a map.
HOST_DEVICE constexpr int matrix_row(int channel) {
  const int q = channel / 8 % 4, t = channel / 2 % 4, e = channel % 2;
  return channel / 32 * 32 + t * 8 + q * 2 + e;
}
// Bytes of a slice of one tap's matrix: 64 output × 32 input channels.
constexpr int kMatrixBytes = kBlockChannels * kRowBytes;
constexpr int kMatricesBytes = 9 * kMatrixBytes;

// The address lane `lane` gives ldmatrix_x4 for 16 pixels × 16 channels: the pixel and the piece.
HOST_DEVICE constexpr int pixel_of_lane(int lane) { return lane % 16; }
HOST_DEVICE constexpr int pixel_piece_of_lane(int lane) { return lane / 16; }
// The same for 16 rows of a matrix × 16 channels, two fragments of 8 rows: the row and the piece.
HOST_DEVICE constexpr int row_of_lane(int lane) { return lane / 16 * 8 + lane % 8; }
HOST_DEVICE constexpr int row_piece_of_lane(int lane) { return lane / 8 % 2; }
// The next 16 channels of 32 are the first's addresses with this bit flipped.
constexpr int kSecondHalf = 2 << 4;

// What lane `lane` holds of a product: pixels lane / 4 and lane / 4 + 8, channels eight_of_lane() to + 7 of the
// warp's 32.
HOST_DEVICE constexpr int result_pixel(int lane, int half) { return lane / 4 + 8 * half; }
HOST_DEVICE constexpr int eight_of_lane(int lane) { return lane % 4 * 8; }

// Eight warps a block: warp w has group w / 2 of the tile's rows and output channels 32·(w % 2) to + 31 of the
// block's 64.
constexpr int kRowGroups = 4;
HOST_DEVICE constexpr int row_group_of_warp(int warp) { return warp / 2; }
HOST_DEVICE constexpr int channel_of_warp(int warp) { return warp % 2 * kWarpChannels; }

// Shared memory for a halo tile of `extra` more rows than the block's `rows` a warp, and for two slices of matrices and
// of halo.
HOST_DEVICE constexpr int halo_bytes(int rows, int extra) { return (kRowGroups * rows + extra) * kPitch * kRowBytes; }
HOST_DEVICE constexpr int conv_shared_bytes(int rows, int extra) {
  return 2 * (kMatricesBytes + halo_bytes(rows, extra));
}

// ---- Weight gradient: rows of 128 bytes, 64 channels of a pixel; both operands are read transposed ----

constexpr int kGradientChannels = 64;
constexpr int kGradientPieces = kGradientChannels / kPieceChannels;
constexpr int kGradientRowBytes = 128;

// A tile of 16 × rows pixels of `left`, and the pixels of `right` under its nine taps. For stride 2 the even columns of
// a row come first, then the odd ones, so that the pixels of 16 successive left pixels under a tap lie side by side.
HOST_DEVICE constexpr int gradient_offset(int place, int key, int piece) {
  return place * kGradientRowBytes + ((piece ^ (key & 7)) << 4);
}
HOST_DEVICE constexpr int left_offset(int y, int x, int piece) { return gradient_offset(y * kTileWidth + x, x, piece); }

template <int kStride>
struct RightHalo {
  static constexpr int kRows = kStride == 1 ? 8 : 4;         // of the left tile
  static constexpr int kHeight = kStride * (kRows - 1) + 3;  // of the halo tile
  static constexpr int kWidth = kStride * (kTileWidth - 1) + 3;
  static constexpr int kRowPlaces = kStride == 1 ? kPitch : 34;  // 17 even, 17 odd columns
  static constexpr int kLeftBytes = kRows * kTileWidth * kGradientRowBytes;
  static constexpr int kBytes = kHeight * kRowPlaces * kGradientRowBytes;
  static constexpr int kSharedBytes = 2 * (kLeftBytes + kBytes);
  static constexpr int kPadding = kStride == 1 ? 1 : 0;

  // The place in its row, and the key of its swizzle, of column x of the halo tile.
  HOST_DEVICE static constexpr int column(int x) { return kStride == 1 ? x : x % 2 * 17 + x / 2; }
  HOST_DEVICE static constexpr int key(int x) { return x / kStride; }
  HOST_DEVICE static constexpr int offset(int y, int x, int piece) {
    return gradient_offset(y * kRowPlaces + column(x), key(x), piece);
  }
};

// The address lane `lane` gives ldmatrix_x4_trans for 16 pixels × 16 channels as the left operand [channels, pixels]
// ...
HOST_DEVICE constexpr int left_pixel_of_lane(int lane) { return lane / 16 * 8 + lane % 8; }
HOST_DEVICE constexpr int left_piece_of_lane(int lane) { return lane / 8 % 2; }
// ... and as two fragments of 8 columns of the right operand [pixels, channels].
HOST_DEVICE constexpr int right_pixel_of_lane(int lane) { return lane % 16; }
HOST_DEVICE constexpr int right_piece_of_lane(int lane) { return lane / 16; }

// Twelve warps: a column of the window and a quarter of the 64×64 matrix each.
constexpr int kGradientWarps = 12;
HOST_DEVICE constexpr int column_of_warp(int warp) { return warp % 3; }
HOST_DEVICE constexpr int row_half_of_warp(int warp) { return warp / 3 / 2; }
HOST_DEVICE constexpr int column_half_of_warp(int warp) { return warp / 3 % 2; }

}  // namespace cmslap::cuda::sm80
