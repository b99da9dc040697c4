// Which pixel and which channel goes where in the kernels between images and feature maps (image_conv.cu).
#pragma once

#include <cstdint>

#include "elements.h"

namespace cmslap::cuda::image_indexing {

// ---- Strips: what threads that keep eight channels walk down ----

struct Strip {
  int image, x, y, end;  // rows y to end - 1 of a column
};

// Blocks of 256 threads: `eights` of them share a pixel, `lanes` pixels lie side by side. A strip is 16 rows of them.
struct Strips {
  static constexpr int kRows = 16;
  int height, eights, lanes, across, down;
  int64_t count;

  HOST_DEVICE constexpr Strips(int batch, int height, int width, int channels)
      : height(height),
        eights(channels / 8),
        lanes(256 / eights),
        across((width + lanes - 1) / lanes),
        down((height + kRows - 1) / kRows),
        count(int64_t{batch} * down * across) {}
  // Column x may lie outside the image.
  HOST_DEVICE constexpr Strip at(int64_t number, int lane) const {
    const int y = int(number / across % down) * kRows;
    return {int(number / across / down), int(number % across) * lanes + lane, y,
            y + kRows < height ? y + kRows : height};
  }
};

// ---- Residual head ----

constexpr int kHeadHeight = 16, kHeadWidth = 32;  // pixels a block makes
constexpr int kHeadHaloWidth = kHeadWidth + 2;
// Pixels of the halo tile. 4 modulo 16: when the lanes of a warp store products of eight pixels and eight taps, [tap,
// pixel], they write to 32 different banks.
constexpr int kHeadHalo = (kHeadHeight + 2) * kHeadHaloWidth;
static_assert(kHeadHalo % 16 == 4);

// Word number `i` of the taps' matrix as fragments of mma.m16n8k16: [channels / 32, lane, step, n, register]. A lane's
// quarter of 32 channels is eight successive ones, 16 bytes of a pixel; registers 0 and 1 of step s are its words 2·s
// and 2·s + 1.
struct HeadWord {
  int channel, tap;  // the first of two channels; taps from 9 on are padding

  HOST_DEVICE constexpr explicit HeadWord(int i)
      : channel(i / 256 * 32 + i / 8 % 4 * 8 + (i / 4 % 2 * 2 + i % 2) * 2), tap(i / 2 % 2 * 8 + i / 8 % 32 / 4) {}
};

// Pixel y of 2H meets the image's pixels through taps k of four with y = 2·i + k - 1: k is image_tap(y, 0) or (y, 1).
HOST_DEVICE constexpr int image_tap(int y, int which) { return (y + 1) % 2 + 2 * which; }
HOST_DEVICE constexpr int image_pixel(int y, int tap) { return (y + 1 - tap) / 2; }  // never a half

}  // namespace cmslap::cuda::image_indexing
