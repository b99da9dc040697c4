// The index maths of the mma.sync and the image kernels (csrc/cuda/indexing_sm80.h, indexing_image.h) on whole small
// problems: every output has one writer, every tap is read where the definition reads it, no two rows of ldmatrix share
// banks.
#include "cuda/indexing_sm80.h"

#include <map>
#include <set>

#include "cuda/indexing_image.h"
#include "cuda_testing.h"

namespace cmslap::cuda::testing {
namespace {

using namespace sm80;

void require(bool right, const char* what) {
  if (!right) throw std::runtime_error(what);
}

struct Source {  // of 16 bytes in shared memory
  int y, x, piece;
  bool operator==(const Source& other) const { return y == other.y && x == other.x && piece == other.piece; }
};
using Memory = std::map<int, Source>;  // by address

void put(Memory& memory, int address, const Source& source, int bytes) {
  require(address >= 0 && address % 16 == 0 && address + 16 <= bytes, "a piece lies in its room");
  require(memory.emplace(address, source).second, "two pieces lie in two places");
}

// The 32 addresses of ldmatrix.x4: each eight lanes must meet eight 16-byte columns of the 128 bytes of all banks.
template <class Address>
void require_no_conflicts(Address address) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::set<int> columns;
    for (int row = 0; row < 8; ++row) columns.insert(address(8 * matrix + row) / 16 % 8);
    require(columns.size() == 8, "rows of ldmatrix share banks");
  }
}

// ---- Tiles ----

TEST(index_tiles) {
  const int batch = between(1, 3), height = between(1, 70), width = between(1, 70);
  const Tiling tiles(batch, height, width, between(1, 33), between(1, 17));
  std::vector<int> covered(batch * height * width);
  for (int number = 0; number < tiles.count; ++number) {
    const Tile tile = tiles[number];
    require(tile.top < height && tile.left < width, "a tile begins inside its map");
    for (int y = tile.top; y < std::min(tile.top + tiles.height, height); ++y)
      for (int x = tile.left; x < std::min(tile.left + tiles.width, width); ++x)
        ++covered[(tile.image * height + y) * width + x];
  }
  for (int times : covered) require(times == 1, "every pixel is in one tile");
}

// ---- Convolution ----

// The halo tile at (0, 0) as the kernel copies it, with coordinates in the input.
Memory halo_tile(const Taps& taps, int rows, int bytes) {
  Memory memory;
  for (int i = 0; i < kRowGroups * rows + taps.height - 1; ++i)
    for (int j = 0; j < kTileWidth + taps.width - 1; ++j)
      for (int piece = 0; piece < kPieces; ++piece)
        put(memory, halo_offset(i, j, piece), {taps.step * i + taps.offset_y, taps.step * j + taps.offset_x, piece},
            bytes);
  return memory;
}

// What ldmatrix reads of a halo tile for output pixels (row, 0 ..) under tap (k, l) and half a slice of channels.
void test_pixels(const Taps& taps, const Memory& memory, int row, int k, int l, int half, int stride, int pad) {
  const auto address = [&](int lane) {
    return halo_offset(0, pixel_of_lane(lane) + l, pixel_piece_of_lane(lane)) ^ half * kSecondHalf;
  };
  require_no_conflicts(address);
  const int tap = taps.number(k, l);
  for (int lane = 0; lane < 32; ++lane) {
    const int at = (row + k) * kPitch * kRowBytes + address(lane);
    const Source meant{stride * row + tap / 3 - pad, stride * pixel_of_lane(lane) + tap % 3 - pad,
                       2 * half + pixel_piece_of_lane(lane)};
    require(memory.at(at) == meant, "a tap is read where the convolution reads it");
  }
}

void test_taps(const Taps& taps, int rows, int stride, int pad, std::multiset<int>& met) {
  const Memory memory = halo_tile(taps, rows, halo_bytes(rows, 2));
  for (int k = 0; k < taps.height; ++k)
    for (int l = 0; l < taps.width; ++l) {
      met.insert(taps.number(k, l));
      for (int row = 0; row < kRowGroups * rows; ++row)
        for (int half = 0; half < 2; ++half) test_pixels(taps, memory, row, k, l, half, stride, pad);
    }
}

TEST(sm80_index_taps) {
  const std::multiset<int> every = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  for (int rows : {2, 4}) {
    std::multiset<int> once, by_phase;
    test_taps(all_taps(), rows, 1, 1, once);
    for (int phase = 0; phase < 4; ++phase) test_taps(phase_taps(phase), rows, 2, 0, by_phase);
    require(once == every && by_phase == every, "every tap is met once");
  }
}

TEST(sm80_index_matrices) {
  // Rows as they are copied: a block's output channel and a piece of a slice of input channels.
  Memory memory;
  for (int channel = 0; channel < kBlockChannels; ++channel)
    for (int piece = 0; piece < kPieces; ++piece)
      put(memory, swizzled(matrix_row(channel), piece), {channel, 0, piece}, kMatrixBytes);
  require(memory.size() * 16 == kMatrixBytes, "a matrix fills its room");
  for (int first = 0; first < kBlockChannels; first += kWarpChannels)
    for (int pair = 0; pair < 2; ++pair)
      for (int half = 0; half < 2; ++half) {
        const auto address = [&](int lane) {
          return (swizzled(first + row_of_lane(lane), row_piece_of_lane(lane)) ^ half * kSecondHalf) +
                 pair * 16 * kRowBytes;
        };
        require_no_conflicts(address);
        // Matrices 0 and 1 are columns 0-7 of the sum's 16 channels and 8-15 of product 2·pair, matrices 2 and 3 of the
        // next.
        for (int lane = 0; lane < 32; ++lane) {
          const Source source = memory.at(address(lane));
          const int product = 2 * pair + lane / 16, column = lane % 8;
          // Lane column / 2 of each quad gets this column, as element column % 2.
          require(source.y == first + eight_of_lane(column / 2) + 2 * product + column % 2,
                  "lanes get successive channels");
          require(source.piece == 2 * half + lane / 8 % 2, "pieces follow the sum");
        }
      }
}

TEST(sm80_index_results) {
  for (int rows : {2, 4}) {
    std::vector<int> written(kRowGroups * rows * kTileWidth * kBlockChannels);
    for (int warp = 0; warp < 8; ++warp)
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < rows; ++r)
          for (int half = 0; half < 2; ++half)
            for (int c = 0; c < 8; ++c) {
              const int pixel = (row_group_of_warp(warp) * rows + r) * kTileWidth + result_pixel(lane, half);
              ++written[pixel * kBlockChannels + channel_of_warp(warp) + eight_of_lane(lane) + c];
            }
    for (int times : written) require(times == 1, "every result has one writer");
  }
}

TEST(sm80_index_transposed_conv) {
  // Every output pixel of a tile's phases receives tap (k, l) of exactly the input pixels that the definition names.
  const Memory memory = halo_tile(upsampling_taps(), 2, halo_bytes(2, 1));
  for (int tap = 0; tap < 9; ++tap)
    for (int row = 0; row < kRowGroups * 2; ++row) {
      const int i = row + 1 - back(tap / 3), j = 1 - back(tap % 3);  // in the halo tile, as the kernel indexes it
      for (int lane = 0; lane < 32; ++lane) {
        const Source read = memory.at(halo_offset(i, pixel_of_lane(lane) + j, pixel_piece_of_lane(lane)));
        const int y = 2 * row + phase_of(tap) / 2, x = 2 * pixel_of_lane(lane) + phase_of(tap) % 2;
        require(y == 2 * read.y + tap / 3 && x == 2 * read.x + tap % 3,
                "a tap reaches the output that the definition names");
      }
    }
}

TEST(sm80_index_shared_memory) {
  constexpr int kKilobyte = 1024;
  require(conv_shared_bytes(4, 2) <= 163 * kKilobyte, "tall tiles fit compute capability 8.0");
  require(conv_shared_bytes(2, 2) <= 99 * kKilobyte, "short tiles fit 8.6 and 8.9");
  require(RightHalo<1>::kSharedBytes <= 99 * kKilobyte && RightHalo<2>::kSharedBytes <= 99 * kKilobyte,
          "so do gradients");
}

// ---- Weight gradient ----

template <int kStride>
void test_gradient_tile() {
  using Halo = RightHalo<kStride>;
  Memory left, right;
  for (int piece = 0; piece < kGradientPieces; ++piece) {
    for (int y = 0; y < Halo::kRows; ++y)
      for (int x = 0; x < kTileWidth; ++x) put(left, left_offset(y, x, piece), {y, x, piece}, Halo::kLeftBytes);
    for (int y = 0; y < Halo::kHeight; ++y)
      for (int x = 0; x < Halo::kWidth; ++x) put(right, Halo::offset(y, x, piece), {y, x, piece}, Halo::kBytes);
  }
  for (int channel = 0; channel < kGradientChannels; channel += 16)
    for (int row = 0; row < Halo::kRows; ++row) {
      const auto left_address = [&](int lane) {
        const int address = left_offset(0, left_pixel_of_lane(lane), channel / 32 * 4 + left_piece_of_lane(lane));
        return (address ^ channel / 16 % 2 * kSecondHalf) + row * kTileWidth * kGradientRowBytes;
      };
      require_no_conflicts(left_address);
      for (int lane = 0; lane < 32; ++lane)
        require(left.at(left_address(lane)) == Source{row, left_pixel_of_lane(lane), channel / 8 + lane / 8 % 2},
                "a row of the left map");
      for (int tap = 0; tap < 9; ++tap) {
        const auto right_address = [&](int lane) {
          const int x = kStride * right_pixel_of_lane(lane) + tap % 3;
          const int address = Halo::offset(0, x, channel / 32 * 4 + right_piece_of_lane(lane));
          return (address ^ channel / 16 % 2 * kSecondHalf) +
                 (kStride * row + tap / 3) * Halo::kRowPlaces * kGradientRowBytes;
        };
        require_no_conflicts(right_address);
        for (int lane = 0; lane < 32; ++lane)
          require(right.at(right_address(lane)) == Source{kStride * row + tap / 3,
                                                          kStride * right_pixel_of_lane(lane) + tap % 3,
                                                          channel / 8 + lane / 16},
                  "the right map's pixels under a tap");
      }
    }
}

TEST(sm80_index_weight_gradient) {
  test_gradient_tile<1>();
  test_gradient_tile<2>();
  std::set<std::array<int, 3>> parts;
  for (int warp = 0; warp < kGradientWarps; ++warp)
    parts.insert({column_of_warp(warp), row_half_of_warp(warp), column_half_of_warp(warp)});
  require(parts.size() == kGradientWarps && *parts.rbegin() == std::array<int, 3>{2, 1, 1}, "warps share the matrices");
}

// ---- Images ----

TEST(image_index_strips) {
  const int batch = between(1, 3), height = between(1, 40), width = between(1, 70), channels = 16 * between(1, 16);
  const image_indexing::Strips strips(batch, height, width, channels);
  require(strips.lanes * strips.eights <= 256, "threads enough");
  std::vector<int> covered(batch * height * width);
  for (int64_t number = 0; number < strips.count; ++number)
    for (int lane = 0; lane < strips.lanes; ++lane) {
      const image_indexing::Strip strip = strips.at(number, lane);
      for (int y = strip.y; y < strip.end && strip.x < width; ++y)
        ++covered[(strip.image * height + y) * width + strip.x];
    }
  for (int times : covered) require(times == 1, "every pixel is in one strip");
}

TEST(residual_index) {
  using namespace image_indexing;
  // Fragments of b: register b of step s of lane 4·n + q is tap n, or 8 + n, of channels that the lane's words 2·s + b
  // are of.
  std::set<std::pair<int, int>> met;
  for (int i = 0; i < 2 * 256; ++i) {
    const HeadWord word(i);
    const int group = i / 256, lane = i / 8 % 32, step = i / 4 % 2, n = i / 2 % 2, b = i % 2;
    require(word.channel == 32 * group + lane % 4 * 8 + 2 * (2 * step + b) && word.tap == 8 * n + lane / 4,
            "a word of b");
    met.insert({word.channel, word.tap});
  }
  require(met.size() == 32 * 16, "every pair of channels meets every tap");
  // Products stored by a warp: eight pixels × two taps of four.
  for (int e = 0; e < 2; ++e) {
    std::set<int> banks;
    for (int lane = 0; lane < 32; ++lane) banks.insert(((lane % 4 * 2 + e) * kHeadHalo + lane / 4) % 32);
    require(banks.size() == 32, "stores of products share no bank");
  }
  // Each tap of the 4×4 kernel reaches the pixels that the definition names, and nothing else is added.
  const int height = between(1, 9);
  std::set<std::pair<int, int>> reached;
  for (int y = 0; y < 2 * height; ++y)
    for (int which = 0; which < 2; ++which) {
      const int k = image_tap(y, which), i = image_pixel(y, k);
      require(y == 2 * i + k - 1 && k < 4, "a tap of the upsampling");
      if (i >= 0 && i < height) reached.insert({i, k});
    }
  int expected = 0;
  for (int i = 0; i < height; ++i)
    for (int k = 0; k < 4; ++k) expected += 2 * i + k - 1 >= 0 && 2 * i + k - 1 < 2 * height;
  require(static_cast<int>(reached.size()) == expected, "every tap is met");
}

}  // namespace
}  // namespace cmslap::cuda::testing
