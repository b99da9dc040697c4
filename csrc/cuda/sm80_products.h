// What the mma.sync convolutions share: copies of a halo tile and of the matrices into shared memory, and their
// products.
#pragma once

#include "indexing_sm80.h"
#include "kernels.h"
#include "ptx.h"
#include "vector_io.h"

namespace cmslap::cuda::sm80 {

constexpr int kThreads = 32 * 2 * kRowGroups;

struct Map {  // of the input
  const uint16_t* data;
  int height, width, channels;
};

// Copies the pixels that `taps` read for a tile of kRows × 16 output pixels, 32 channels from `channel`; zeros stand
// outside the image and beyond its channels. In parts, to be issued between products: each thread copies the same piece
// of a pixel a part.
template <int kRows>
struct HaloCopy {
  static constexpr int kPixels = kThreads / kPieces;  // of a part
  uint32_t to;
  const Map& map;
  const uint16_t* image;
  int top, left, step;  // of the first pixel in the image; between pixels
  int width, pixels;    // to copy; none if this is one copy too many
  bool channels_inside;

  DEVICE HaloCopy(uint32_t to, const Map& map, const Tile& tile, const Taps& taps, int channel, bool wanted)
      : to(to),
        map(map),
        top(taps.step * tile.top + taps.offset_y),
        left(taps.step * tile.left + taps.offset_x),
        step(taps.step),
        width(kTileWidth + taps.width - 1),
        pixels(wanted ? (kRows + taps.height - 1) * width : 0) {
    channel += threadIdx.x % kPieces * kPieceChannels;
    channels_inside = channel < map.channels;
    image = map.data + int64_t{tile.image} * map.height * map.width * map.channels + channel;
  }
  HOST_DEVICE static constexpr int parts(const Taps& taps) {
    return ((kRows + taps.height - 1) * (kTileWidth + taps.width - 1) + kPixels - 1) / kPixels;
  }
  DEVICE void part(int number) const {
    const int pixel = number * kPixels + threadIdx.x / kPieces;
    // of the widths there are, so that no division is left
    const int i = width == kTileWidth ? pixel / kTileWidth
                  : width == 17       ? pixel / 17
                                      : pixel / 18,
              j = pixel - i * width;
    const int y = top + step * i, x = left + step * j;
    const bool valid = y >= 0 && y < map.height && x >= 0 && x < map.width && channels_inside;
    const int place = y * map.width + x;
    cp_async_16_if(pixel < pixels, to + halo_offset(i, j, threadIdx.x % kPieces),
                   image + (valid ? int64_t{place} * map.channels : 0), valid);
  }
  DEVICE void all() const {
    for (int number = 0; number * kPixels < pixels; ++number) part(number);
  }
};

// Copies 64 rows from `row`, 32 columns from `channel` of each of the nine matrices [9, out, in].
DEVICE void copy_matrices(uint32_t to, const uint16_t* matrices, int out, int in, bool flipped, int row, int channel) {
  const int own = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
  row += own;
  channel += piece * kPieceChannels;
  const bool valid = row < out && channel < in;
  to += swizzled(matrix_row(own), piece);
#pragma unroll
  for (int tap = 0; tap < 9; ++tap, to += kMatrixBytes) {
    const int64_t matrix = flipped ? 8 - tap : tap;
    cp_async_16(to, matrices + (valid ? (matrix * out + row) * in + channel : 0), valid);
  }
}
static_assert(kThreads == kBlockChannels * kPieces);

// Where a thread is among the operands: what ldmatrix needs, in bytes from the start of a halo tile and of a tap's
// matrix.
struct Place {
  int row;             // its warp's first in the tile
  int channel;         // its warp's first in the block
  uint32_t pixels[3];  // of the tap columns
  uint32_t matrix;

  DEVICE explicit Place(int rows_of_warp) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    row = row_group_of_warp(warp) * rows_of_warp;
    channel = channel_of_warp(warp);
#pragma unroll
    for (int l = 0; l < 3; ++l) pixels[l] = halo_offset(row, pixel_of_lane(lane) + l, pixel_piece_of_lane(lane));
    matrix = swizzled(channel + row_of_lane(lane), row_piece_of_lane(lane));
  }
};

// Of a thread's eight channels; zeros where there is no bias, or no channel.
DEVICE void load_bias(float (&values)[8], const float* bias, int channel, int channels) {
  const bool exists = bias != nullptr && channel < channels;
#pragma unroll
  for (int c = 0; c < 8; ++c) values[c] = exists ? bias[channel + c] : 0.0f;
}

// The fragments of a tap's matrix for the warp's 32 output channels × 16 input channels.
struct MatrixFragments {
  uint32_t words[2][4];

  DEVICE void load(uint32_t address) {
    ldmatrix_x4(words[0], address);
    ldmatrix_x4(words[1], address + 16 * kRowBytes);
  }
  template <class T>
  DEVICE void multiply(const uint32_t (&pixels)[4], float (&sums)[4][4]) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t matrix[2] = {words[n / 2][n % 2 * 2], words[n / 2][n % 2 * 2 + 1]};
      mma_m16n8k16<T>(sums[n], pixels, matrix);
    }
  }
};

}  // namespace cmslap::cuda::sm80
