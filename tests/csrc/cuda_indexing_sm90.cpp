// The index maths of the sm_90a kernels (csrc/cuda/indexing_sm90.h) on whole small problems: every pixel in one tile,
// every tap where the definition reads it, descriptors' fields read back as the tensor cores do.
#include "cuda/indexing_sm90.h"

#include <algorithm>
#include <set>

#include "cuda_testing.h"

namespace cmslap::cuda::testing {
namespace {

using namespace sm90;

void require(bool right, const char* what) {
  if (!right) throw std::runtime_error(what);
}

void test_shares(int tiles, int shares) {
  require(first_tile(tiles, 0, shares) == 0 && first_tile(tiles, shares, shares) == tiles, "shares are all tiles");
  for (int share = 0; share < shares; ++share) {
    const int count = first_tile(tiles, share + 1, shares) - first_tile(tiles, share, shares);
    require(count == tiles / shares || count == tiles / shares + 1, "shares are alike");
  }
}

// Where element (row, step) of an operand lies, as PTX's tables of the 128-byte swizzle say: `row` counts the rows of a
// or the columns of b, `step` the 16 that are summed over.
uint32_t address_of(uint64_t descriptor, bool transposed, int row, int step) {
  require(descriptor >> 62 == 1, "128-byte swizzle");
  require((descriptor >> 46 & 0x3fff) == 0, "no base offset");
  const uint32_t start = (descriptor & 0x3fff) << 4;
  const uint32_t leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  return transposed ? swizzled(start + step / 8 * stride + step % 8 * 128 + row / 64 * leading + row % 64 * 2)
                    : swizzled(start + row / 8 * stride + row % 8 * 128 + step * 2);
}

// Channel `channel` of pixel (y, x) of a box of `width` columns that the copy engine brought to `box`.
uint32_t brought(uint32_t box, int width, int y, int x, int channel) {
  const uint32_t dense = (y * width + x) * 128 + channel * 2;
  const uint32_t piece = dense / 16 % 8, pattern_row = dense / 128 % 8;
  return box + dense / 128 * 128 + (piece ^ pattern_row) * 16 + dense % 16;
}

// The pixel of [stride·H, stride·W] at (y, x) of a box; the definition's coordinates.
template <class W>
std::pair<int, int> met(const Tile& tile, int part, int y, int x) {
  const int column = W::left(tile, part) + x;
  return {W::top(tile) + y, W::kStride == 1 ? column : 2 * column + W::channel(part) / kChannels};
}

template <class W>
void test_window() {
  const uint32_t box = between(0, 3) * kPatternBytes;
  const Tile tile = {0, between(0, 3) * W::kRows, between(0, 3) * W::kColumns};
  const int pad = W::kStride == 1;
  std::set<int> taps;
  for (int part = 0; part < W::kParts; ++part) {
    for (int tap = 0; tap < kTaps; ++tap) {
      if (W::part(tap) != part) continue;
      taps.insert(tap);
      // Summed over channels: pixels of a tile of 8 columns are columns of b.
      if (W::kColumns == 8) {
        for (int step = 0; step < 4; ++step) {
          const uint64_t b =
              advanced(descriptor(box, kLeadingUnread, W::kRowBytes), W::offset(tap) + step * kStepBytes);
          for (int pixel = 0; pixel < W::kPixels; ++pixel) {
            const int y = pixel / 8 * W::kStride + tap / 3;
            int x = -1;  // the column of the box that the definition asks for
            for (int column = 0; column < W::kWidth; ++column)
              if (met<W>(tile, part, 0, column).second == W::kStride * (tile.left + pixel % 8) + tap % 3 - pad)
                x = column;
            require(x >= 0 && y < W::kHeight, "what a tap reads is in its box");
            require(met<W>(tile, part, y, x).first == W::kStride * (tile.top + pixel / 8) + tap / 3 - pad,
                    "row of a tap");
            for (int k = 0; k < 16; ++k)
              require(address_of(b, false, pixel, k) == brought(box, W::kWidth, y, x, 16 * step + k),
                      "a convolution's descriptors read what the copy engine brought");
          }
        }
      }
      // Summed over pixels: 16 columns of a row of the tile are a step; the three taps above each other, 64 columns
      // each.
      if (W::kColumns == 16 && tap < 3) {
        for (int row = 0; row < W::kRows; ++row) {
          const uint64_t b =
              advanced(descriptor(box, W::kWidth * kPixelBytes, kPatternBytes), W::offset(tap) + row * W::kRowBytes);
          for (int n = 0; n < 192; ++n)
            for (int k = 0; k < 16; ++k) {
              const int y = row * W::kStride + n / 64;
              int x = -1;
              for (int column = 0; column < W::kWidth; ++column)
                if (met<W>(tile, part, 0, column).second == W::kStride * (tile.left + k) + tap - pad) x = column;
              require(x >= 0 && y < W::kHeight, "what three taps read is in their box");
              require(address_of(b, true, n, k) == brought(box, W::kWidth, y, x, n % 64),
                      "a weight gradient's descriptors read what the copy engine brought");
            }
        }
      }
    }
  }
  require(taps.size() == kTaps, "every tap has a box");
}

template <class P>
void test_phases() {
  const uint32_t box = between(0, 3) * kPatternBytes;
  std::vector<int> taps_of(4);
  for (int tap = 0; tap < kTaps; ++tap) {
    const int k = tap / 3, l = tap % 3;
    require(phase_of(tap) == k % 2 * 2 + l % 2, "phase of a tap");
    ++taps_of[phase_of(tap)];
    const uint64_t b = advanced(descriptor(box, kLeadingUnread, P::kRowBytes), P::offset(tap));
    const Tile tile = {0, 0, 0};
    for (int pixel = 0; pixel < P::kPixels; ++pixel) {
      const int y = pixel / 8 - k / 2 - P::top(tile), x = pixel % 8 - l / 2 - P::left(tile, P::part(tap));
      require(y >= 0 && y < P::kHeight && x >= 0 && x < P::kWidth, "what a phase reads is in the box");
      for (int channel = 0; channel < 16; ++channel)
        require(address_of(b, false, pixel, channel) == brought(box, P::kWidth, y, x, channel),
                "a phase's descriptors read what the copy engine brought");
    }
  }
  require(taps_of == std::vector<int>({4, 2, 2, 1}), "taps of the phases");
}

TEST(sm90_index_accumulators) {
  std::set<uint32_t> rows;
  for (int warp = 0; warp < 4; ++warp)
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::set<uint32_t> banks;
      for (int r = 0; r < 8; ++r) {
        const uint32_t row = matrix_row(warp, 8 * matrix + r);
        const int pixel = matrix / 2 * 8 + r, channel = 16 * warp + 8 * (matrix % 2);
        require(row == brought(0, 16, 0, pixel, channel),
                "an accumulator's matrix lies where the copy engine takes it");
        rows.insert(row);
        banks.insert(row / 16 % 8);
      }
      require(banks.size() == 8, "no two rows of a matrix share a bank");
    }
  require(rows.size() == 16 * 8, "16 pixels of 64 channels, each piece once");
}

TEST(index_shares) { test_shares(between(0, 1000), between(1, 140)); }

TEST(sm90_index_windows) {
  test_window<Window<1, 32, 8>>();
  test_window<Window<1, 16, 8>>();
  test_window<Window<1, 16, 8, true>>();
  test_window<Window<2, 16, 8>>();
  test_window<Window<2, 16, 8, true>>();
  test_window<Window<1, 8, 16>>();
  test_window<Window<1, 8, 16, true>>();
  test_window<Window<2, 4, 16>>();
  test_window<Window<2, 4, 16, true>>();
}

TEST(sm90_index_phases) {
  test_phases<Phases<16, 8>>();
  test_phases<Phases<16, 8, true>>();
}

}  // namespace
}  // namespace cmslap::cuda::testing
