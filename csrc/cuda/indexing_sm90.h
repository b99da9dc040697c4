// Which pixel lies where, for the sm_90a kernels: tiles, the windows that the nine taps see of them, shared memory as
// the copy engine fills it and the tensor cores read it.
//
// A pixel of 64 channels of 16 bits is one row of 128 bytes. A box of pixels that the copy engine brings lies dense,
// row by row, from an address that is a multiple of 1024, and the 16-byte pieces of every pixel change places among
// themselves (swizzled): so eight neighbours' pieces of the same channels lie in eight different banks, and neighbours,
// wherever the eight begin, are always 128 bytes apart. That is what lets one box serve all nine taps: a tap's operand
// is the box read from another pixel on.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace cmslap::cuda::sm90 {

constexpr int kChannels = 64;
constexpr int kPixelBytes = 128;
constexpr int kPatternBytes = 1024;  // after which the swizzle repeats: eight pixels
constexpr int kTaps = 9;
constexpr int kMatrixBytes = kChannels * kPixelBytes;  // the weights of a tap
constexpr int kWeightBytes = kTaps * kMatrixBytes;
constexpr int kSharedMemory = 227 * 1024;  // that a block of a Hopper multiprocessor may have

HOST_DEVICE constexpr int round_up(int value, int to) { return ceil_div(value, to) * to; }

// ---- Shared memory and wgmma's descriptors of it ----

// Where the byte lies that would lie at `address` without a swizzle: bits 4 to 6, the piece, are exchanged by bits 7 to
// 9 of the address itself. Copy engine and tensor cores both do this to every address they form.
HOST_DEVICE constexpr uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

// An operand in shared memory, of pixels (or rows of weights) of 128 bytes. In both kinds eight pixels lie 128 bytes
// apart and the next eight `stride` bytes further on.
// - Summed over channels: 16 channels of a pixel are one step of the sum, 32 bytes; `leading` is not read.
// - Summed over pixels ("transposed"): 16 pixels are one step, and 64 channels one group of rows or columns; the next
// group
//   begins `leading` bytes further on.
// Bits 49 to 51, the base offset, are the row of the pattern at which a pattern begins. Ours begin where an address is
// a multiple of 1024, so it is 0, also where an operand starts in the middle of one.
HOST_DEVICE constexpr uint64_t descriptor(uint32_t start, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return start >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 | kSwizzle128;
}
HOST_DEVICE constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

constexpr uint32_t kLeadingUnread = 16;
constexpr int kStepBytes = 32;  // 16 channels

// ---- Tiles and what they read ----

// What a tile of a map meets in the map it is convolved with, under W[k, l]: pixel (stride·i + k - pad, stride·j + l -
// pad), pad 1 with stride 1 and 0 with stride 2. It comes in `kParts` boxes, one copy each:
// - stride 1: one box, the tile and a pixel around it;
// - stride 2: even columns in one, odd in another, so that a tap's pixels are neighbours. The map [2H, 2W, 64] is read
// as
//   [2H, W, 128], whose channels begin with the even column's;
// - kAligned: a box for each l, without columns that only its neighbours need. Three times the traffic, but no operand
//   starts in the middle of a swizzle's pattern (where kColumns is a multiple of 8).
template <int kStride_, int kRows_, int kColumns_, bool kAligned = false>
struct Window {
  static_assert(kStride_ == 1 || kStride_ == 2);
  static constexpr int kStride = kStride_, kRows = kRows_, kColumns = kColumns_;  // of the tile
  static constexpr int kPixels = kRows * kColumns;
  static constexpr int kTileBytes = kPixels * kPixelBytes;

  static constexpr int kParts = kAligned ? 3 : kStride;
  static constexpr int kHeight = kStride * (kRows - 1) + 3;
  static constexpr int kWidth = kAligned ? kColumns : kColumns + 3 - kStride;
  static constexpr int kBoxBytes = kHeight * kWidth * kPixelBytes;
  static constexpr int kBoxStride = round_up(kBoxBytes, kPatternBytes);
  static constexpr int kRowBytes = kStride * kWidth * kPixelBytes;  // between what two rows of the tile meet

  HOST_DEVICE static constexpr int part(int tap) { return kAligned ? tap % 3 : tap % 3 % kStride; }
  // What the tile's first pixel meets, from the start of the tap's box.
  HOST_DEVICE static constexpr int offset(int tap) {
    return (tap / 3 * kWidth + (kAligned ? 0 : tap % 3 / kStride)) * kPixelBytes;
  }
  // The corner of a part's box in [N, stride·H, W, stride·64].
  HOST_DEVICE static constexpr int channel(int part) { return kStride == 1 ? 0 : part % 2 * kChannels; }
  HOST_DEVICE static constexpr int left(const Tile& tile, int part) {
    const int pad = 2 - kStride;
    return tile.left - pad + (kAligned ? part / kStride : 0);
  }
  HOST_DEVICE static constexpr int top(const Tile& tile) { return kStride * tile.top - (2 - kStride); }
};

// What a tile of the small map gives to the large one in a transposed convolution: pixel (2i + y, 2j + x) of phase (y,
// x) receives W[y + 2·a, x + 2·b] of pixel (i - a, j - b). It comes in one box with the row above and the column before
// the tile; kAligned: in a box for each b.
template <int kRows_, int kColumns_, bool kAligned = false>
struct Phases {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kPixels = kRows * kColumns;
  static constexpr int kTileBytes = kPixels * kPixelBytes;  // of one phase
  static constexpr int kCount = 4;

  static constexpr int kParts = kAligned ? 2 : 1;
  static constexpr int kHeight = kRows + 1;
  static constexpr int kWidth = kAligned ? kColumns : kColumns + 1;
  static constexpr int kBoxBytes = kHeight * kWidth * kPixelBytes;
  static constexpr int kBoxStride = round_up(kBoxBytes, kPatternBytes);
  static constexpr int kRowBytes = kWidth * kPixelBytes;

  HOST_DEVICE static constexpr int part(int tap) { return kAligned ? back(tap % 3) : 0; }
  // From the start of the tap's box.
  HOST_DEVICE static constexpr int offset(int tap) {
    return ((1 - back(tap / 3)) * kWidth + (kAligned ? 0 : 1 - back(tap % 3))) * kPixelBytes;
  }
  HOST_DEVICE static constexpr int channel(int) { return 0; }
  HOST_DEVICE static constexpr int left(const Tile& tile, int part) { return tile.left - (kAligned ? part : 1); }
  HOST_DEVICE static constexpr int top(const Tile& tile) { return tile.top - 1; }
};

// ---- Accumulators ----

// The 8×8 matrix of an accumulator that belongs to 8 channels and 8 pixels is stored transposed, a row a pixel. Lane
// 8·i + r of warp w of a warpgroup gives the address of pixel r of matrix i: channels 16·w + 8·(i % 2) and the 7 after
// them, pixels 8·(i / 2) and the 7 after them, in a dense tile of pixels that begins at a multiple of 1024.
HOST_DEVICE constexpr uint32_t matrix_row(int warp, int lane) {
  return swizzled((lane / 16 * 8 + lane % 8) * kPixelBytes + (2 * warp + lane / 8 % 2) * 16);
}

}  // namespace cmslap::cuda::sm90
