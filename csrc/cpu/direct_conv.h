// 3×3 convolution, stride 1, padding 1, as a matrix product a row, and its weight gradient: for images and channels too
// few for Winograd's tiles.
#pragma once

#include "image.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int64_t kSegment = 96;  // pixels of a row at once: their input and output stay in L2

// A part of a row: the unit of work.
struct Segment {
  int64_t image, y, x, width;

  static int64_t count(Size size) { return size.batch * size.height * ceil_div(size.width, kSegment); }
  Segment(Size size, int64_t number) {
    const int64_t segments = ceil_div(size.width, kSegment);
    x = number % segments * kSegment;
    y = number / segments % size.height;
    image = number / segments / size.height;
    width = min(kSegment, size.width - x);
  }
};

// Copies pixels [x, x + width) of row y, `pitch` floats each, to every step-th float: as many as channels, or more in
// whole vectors. Pixels outside the image and channels that pad a vector become zeros.
template <class Number>
void copy_row(const Number* images, Size size, int64_t channels, int64_t image, int64_t y, int64_t x, int64_t width,
              int64_t pitch, int64_t step, float* to) {
  const bool inside = y >= 0 && y < size.height;
  const int64_t first = max(0, -x), end = inside ? min(width, size.width - x) : first;
  const Number* pixel = images + ((image * size.height + y) * size.width + x) * channels;
  for (int64_t j = 0; j < width; ++j)
    if (j < first || j >= end)
      std::memset(to + j * step, 0, pitch * sizeof(float));
    else
      for_channels(channels, [&](int64_t c, auto part) {
        const Vec values = load(pixel + j * channels + c, part);
        pitch == channels ? store(to + j * step + c, values, part) : store(to + j * step + c, values);
      });
}

// Stores a segment's sums [pixels, padded channels] through the epilogue.
template <class Epilogue, class Number>
void store_row(const float* sums, int64_t width, int64_t channels, int64_t first_pixel, const Epilogue& epilogue,
               Number* out) {
  for (int64_t j = 0; j < width; ++j)
    for_channels(channels, [&](int64_t c, auto part) {
      const int64_t pixel = (first_pixel + j) * channels;
      store(out + pixel + c, epilogue(load(sums + j * padded(channels) + c), pixel + c, c, part), part);
    });
}

// The pixels that a segment's outputs are made of, column by column: so those of one output lie together, and those of
// the next one begin three pixels after them. Zeros outside the image.
struct Patches {
  float* data;
  int64_t pitch;  // floats of a pixel

  static int64_t floats(int64_t pitch) { return 3 * (kSegment + 2) * pitch; }
  static int64_t position(int64_t tap) { return tap % 3 * 3 + tap / 3; }
  template <class Number>
  Patches(float* data, const Number* images, Size size, int64_t channels, int64_t pitch, const Segment& segment)
      : data(data), pitch(pitch) {
    for (int64_t k = 0; k < 3; ++k)
      copy_row(images, size, channels, segment.image, segment.y + k - 1, segment.x - 1, segment.width + 2, pitch,
               3 * pitch, data + k * pitch);
  }
};

// One matrix [9 · in, out], its rows as the pixels of a patch.
inline PackedWeight<float> pack_taps(ThreadPool& pool, WeightView weight) {
  PackedWeight<float> packed(1, 9 * weight.in, weight.out);
  for_blocks(pool, weight.in, 0, [&](int64_t i, float*) {
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t o = 0; o < weight.out; o += kLanes)
        store(packed.at(0, Patches::position(t) * weight.in + i, o), weight.tap(t, i, o));
  });
  return packed;
}

template <class Number, class Epilogue>
void direct_conv(ThreadPool& pool, const Number* in, Size size, const PackedWeight<float>& weight,
                 const Epilogue& epilogue, Number* out) {
  constexpr int64_t kDepth = 192;  // rows of the weight at once: 64 columns of them stay in L1
  const int64_t channels = weight.in / 9, patch_floats = Patches::floats(channels);
  for_blocks(pool, Segment::count(size), patch_floats + kSegment * padded(weight.out), [&](int64_t s, float* scratch) {
    const Segment segment(size, s);
    const Patches patches(scratch, in, size, channels, channels, segment);
    float* sums = scratch + patch_floats;
    for (int64_t d = 0; d < weight.in; d += kDepth)
      gemm({patches.data + d, 3 * channels, 1}, weight.matrix(0, d), {sums, padded(weight.out)}, segment.width,
           weight.out, min(kDepth, weight.in - d), d > 0);
    store_row(sums, segment.width, weight.out, (segment.image * size.height + segment.y) * size.width + segment.x,
              epilogue, out);
  });
}

// Σ over `rows` rows of kCount neighbouring pixels' patches times the taps; `floats` of each row, which lie together.
template <int kCount, class Number>
CMSLAP_INLINE void patch_sums(const Number* row, int64_t channels, int64_t pitch, const float* taps, int64_t rows,
                              int64_t floats, float (&sums)[kCount]) {
  Vec products[kCount] = {};
  for (int64_t k = 0; k < rows; ++k, row += pitch, taps += 3 * channels)
    for_channels(floats, [&](int64_t c, auto part) {
      const Vec tap = load(taps + c, part);
#pragma GCC unroll 4
      for (int p = 0; p < kCount; ++p) products[p] += load(row + p * channels + c, part) * tap;
    });
  for (int p = 0; p < kCount; ++p) sums[p] = sum(products[p]);
}

// The convolution for one output channel: the sums run along the vectors, which would be padding but for one lane, and
// pixels are read where they lie. store(n, y, x, sum) takes each sum.
template <class Number, class Store>
void conv_to_one(ThreadPool& pool, const Number* in, Size size, WeightView weight, const Store& store) {
  constexpr int kCount = 4;  // pixels at once, which share the loads of the taps
  const int64_t channels = weight.in, pitch = size.width * channels;
  const Buffer taps(9 * channels);
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t c = 0; c < channels; ++c)
      taps.data()[t * channels + c] = weight.data[c * weight.in_stride + t * weight.tap_stride];

  for_blocks(pool, Segment::count(size), 0, [&](int64_t s, float*) {
    const Segment segment(size, s);
    const int64_t first = max(0, 1 - segment.y), rows = min(3, size.height + 1 - segment.y) - first;  // in the image
    const float* taps_of_rows = taps.data() + first * 3 * channels;
    const Number* row = in + (segment.image * size.height + segment.y + first - 1) * pitch;
    for (int64_t x = segment.x, end = segment.x + segment.width; x < end;) {
      if (x > 0 && x + kCount <= min(end, size.width - 1)) {
        float sums[kCount];
        patch_sums(row + (x - 1) * channels, channels, pitch, taps_of_rows, rows, 3 * channels, sums);
        for (int p = 0; p < kCount; ++p) store(segment.image, segment.y, x++, sums[p]);
      } else {
        const int64_t left = max(0, 1 - x), right = min(3, size.width + 1 - x);
        float sums[1];
        patch_sums(row + (x - 1 + left) * channels, channels, pitch, taps_of_rows + left * channels, rows,
                   (right - left) * channels, sums);
        store(segment.image, segment.y, x++, sums[0]);
      }
    }
  });
}

constexpr int64_t kSlices = 16;  // partial sums of a weight gradient: fixed, so that thread counts do not matter

// Adds Σ over pixels of out_gradient [out] ⊗ in [in], shifted by each tap, to weight_gradient [out, in, 3, 3]. Vectors
// run along `out`, or along taps and `in` where fewer of their lanes are padding.
inline void direct_weight_gradient(ThreadPool& pool, const float* in, Size size, int64_t in_channels,
                                   const float* out_gradient, int64_t out_channels, float* weight_gradient,
                                   WeightLayout layout = {}) {
  const int64_t segments = Segment::count(size), slices = min(kSlices, segments);
  const int64_t patch = 9 * in_channels, patch_pitch = padded(patch), pitch = padded(out_channels);
  const int64_t patches_floats = Patches::floats(in_channels) + kLanes;  // as the last patch is read in whole vectors
  const bool along_out = patch * pitch <= out_channels * patch_pitch;
  const int64_t patch_stride = along_out ? pitch : 1, out_stride = along_out ? 1 : patch_pitch;
  const int64_t slice_floats = along_out ? patch * pitch : out_channels * patch_pitch;
  const Buffer sums(slices * slice_floats);
  for_blocks(pool, slices, patches_floats + kSegment * pitch, [&](int64_t slice, float* scratch) {
    float *sum = sums.data() + slice * slice_floats, *gradient = scratch + patches_floats;
    for (int64_t s = slice * segments / slices; s < (slice + 1) * segments / slices; ++s) {
      const bool accumulate = s > slice * segments / slices;
      const Segment segment(size, s);
      const Patches patches(scratch, in, size, in_channels, in_channels, segment);
      copy_row(out_gradient, size, out_channels, segment.image, segment.y, segment.x, segment.width, pitch, pitch,
               gradient);
      if (along_out)
        gemm({patches.data, 1, 3 * in_channels}, {gradient, pitch, kPanel}, {sum, pitch}, patch, out_channels,
             segment.width, accumulate);
      else
        gemm({gradient, 1, pitch}, {patches.data, 3 * in_channels, kPanel}, {sum, patch_pitch}, out_channels, patch,
             segment.width, accumulate);
    }
  });
  for_blocks(pool, out_channels, 0, [&](int64_t o, float*) {
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t i = 0; i < in_channels; ++i)
        for (int64_t slice = 0; slice < slices; ++slice)
          weight_gradient[o * patch + i * layout.in_stride + t * layout.tap_stride] +=
              sums.data()[slice * slice_floats + (Patches::position(t) * in_channels + i) * patch_stride +
                          o * out_stride];
  });
}

// Adds Σ over pixels of image [pixels, channels] to sum [channels].
inline void sum_pixels(ThreadPool& pool, const float* image, int64_t pixels, int64_t channels, float* sum) {
  const int64_t slices = min(kSlices, pixels);
  const Buffer sums(slices * padded(channels));
  for_blocks(pool, slices, 0, [&](int64_t slice, float*) {
    float* partial = sums.data() + slice * padded(channels);
    std::memset(partial, 0, padded(channels) * sizeof(float));
    for (int64_t p = slice * pixels / slices; p < (slice + 1) * pixels / slices; ++p)
      for_channels(channels, [&](int64_t c, auto part) {
        store(partial + c, load(partial + c) + load(image + p * channels + c, part));
      });
  });
  for (int64_t slice = 0; slice < slices; ++slice)
    for (int64_t c = 0; c < channels; ++c) sum[c] += sums.data()[slice * padded(channels) + c];
}

}  // namespace cmslap::cpu::CMSLAP_ISA
