// How maps are cut into tiles and tiles are dealt to thread blocks, for all kernels that multiply matrices. constexpr
// and tested on the host (tests/csrc/cuda_indexing_*.cpp).
#pragma once

#include <cstdint>

#include "elements.h"

namespace cmslap::cuda {

template <class Integer>
HOST_DEVICE constexpr Integer ceil_div(Integer value, int by) {
  return (value + by - 1) / by;
}

struct Tile {
  int image, top, left;
};

// A batch of maps cut into tiles of height × width pixels, counted along rows, then down, then over images.
struct Tiling {
  int height, width;  // of a tile
  int down, across;   // tiles of an image
  int count;

  HOST_DEVICE constexpr Tiling(int batch, int map_height, int map_width, int tile_height, int tile_width)
      : height(tile_height),
        width(tile_width),
        down(ceil_div(map_height, tile_height)),
        across(ceil_div(map_width, tile_width)),
        count(batch * down * across) {}
  HOST_DEVICE constexpr Tile operator[](int number) const {
    const int row = number / across;
    return {row / down, row % down * height, (number - row * across) * width};
  }
};

// The tiles of share `share` of `shares` are [first_tile(share), first_tile(share + 1)).
HOST_DEVICE constexpr int first_tile(int tiles, int share, int shares) {
  return static_cast<int>(int64_t{tiles} * share / shares);
}

// A transposed convolution of stride 2 makes four maps, the output pixels of each parity of row and column: tap (k, l)
// belongs to phase (k % 2, l % 2) and reads the input pixel `back` up and left.
HOST_DEVICE constexpr int phase_of(int tap) { return tap / 3 % 2 * 2 + tap % 3 % 2; }
HOST_DEVICE constexpr int back(int tap_coordinate) { return tap_coordinate / 2; }

}  // namespace cmslap::cuda
