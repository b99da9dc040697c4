// The tied transposed convolution U: 2× upsampling with a convolution's own kernel.
//
//   U(a)[2i + k, 2j + l] = Σ W[k, l] a[i, j],  cropped at the end to 2H×2W
//
// Seen from the output there are four phases. Even rows meet taps k = 0 (of row i) and k = 2 (of row i - 1), odd rows k = 1; columns
// likewise. So the phases are matrix products with 4, 2, 2 and 1 taps, nine in all, and no zero is ever multiplied.
#pragma once

#include "direct_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

// One dimension of a phase: which taps, of which neighbour (0 the pixel itself, 1 the one before it).
struct PhaseTap {
  int64_t tap, before;
};
struct Phase {
  int64_t count;
  PhaseTap taps[2];
};
constexpr Phase kPhases[2] = {{2, {{0, 0}, {2, 1}}}, {1, {{1, 0}, {0, 0}}}};

// kernel: pack_taps of the convolution's kernel read with `in` and `out` exchanged. bias [C] or null.
inline void transposed_conv(Team& team, const float* in, Size size, const PackedKernel& kernel, const float* bias, float* out) {
  const int64_t pitch = padded(kernel.in), row_floats = 2 * (kSegment + 1) * pitch;
  const Activate add_bias{bias, nullptr, 1.0f};
  for_blocks(team, Segment::count(size), row_floats + kSegment * padded(kernel.out), [&](int64_t s, float* scratch) {
    const Segment segment(size, s);
    const int64_t width = segment.width + 1;
    for (int64_t before = 0; before < 2; ++before)
      copy_row(in, size, kernel.in, segment.image, segment.y - before, segment.x - 1, width, scratch + before * width * pitch);
    float* sums = scratch + row_floats;
    for (int64_t p = 0; p < 2; ++p)
      for (int64_t q = 0; q < 2; ++q) {
        const Phase &rows = kPhases[p], &columns = kPhases[q];
        for (int64_t r = 0; r < rows.count; ++r)
          for (int64_t c = 0; c < columns.count; ++c)
            gemm({scratch + (rows.taps[r].before * width + 1 - columns.taps[c].before) * pitch, pitch, 1},
                 kernel.matrix(3 * rows.taps[r].tap + columns.taps[c].tap), {sums, padded(kernel.out)}, segment.width, kernel.out,
                 kernel.in, r + c > 0);
        const int64_t row = (segment.image * size.height + segment.y) * 2 + p;
        store_row(sums, segment.width, kernel.out, (row * size.width + segment.x) * 2 + q, 2, add_bias, out);
      }
  });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
