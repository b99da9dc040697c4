// The recursion of light-weight residual dense blocks, forward and backward.
//
// Without gradients a worker takes a strip of columns through all blocks, row by row: each block keeps the last four
// rows of its records [x, a] in a ring (112 columns and the halo of four blocks: 650 KiB in all, in L2), so that
// between the first x and the last y no feature map exists. A block reads two pixels around, so of R blocks the first
// computes 2(R - 1) columns more on either side; for R = 4 that is 6 % of the work in all, and in memory 256 bytes a
// pixel are read and written instead of 7,680.
//
// With gradients every block's records [x, a, b] are kept, and rows of all blocks' `a`, then of all their b and y are
// computed, with threads meeting in between: nothing is computed twice. The backward pass computes the depthwise sums
// again (864 of 7,008 multiplications) and reads the rest.
#pragma once

#include "dense_block.h"
#include "direct_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Pixels of the image's row y, columns [begin, end), padded with zero channels, to records.
inline void read_pixels(const float* images, Size size, int64_t channels, int64_t width, int64_t image, int64_t y,
                        int64_t begin, int64_t end, float* to, int64_t pitch) {
  const float* from = images + ((image * size.height + y) * size.width + begin) * channels;
  for (int64_t x = begin; x < end; ++x, from += channels, to += pitch) {
    for (int64_t c = channels / kLanes * kLanes; c < width; c += kLanes) store(to + c, Vec{});
    for_channels(channels, [&](int64_t c, auto part) { store(to + c, load(from + c, part), part); });
  }
}

inline void write_pixels(const float* from, int64_t pitch, Size size, int64_t channels, int64_t image, int64_t y,
                         int64_t begin, int64_t end, float* images) {
  float* to = images + ((image * size.height + y) * size.width + begin) * channels;
  for (int64_t x = begin; x < end; ++x, from += pitch, to += channels)
    for_channels(channels, [&](int64_t c, auto part) { store(to + c, load(from + c), part); });
}

// A rectangle of an image through all blocks.
class DenseStrip {
 public:
  static constexpr int64_t kColumns = 112, kLeastRows = 16;

  DenseStrip(const PackedDenseBlock& block, int64_t recursions, Size size, int64_t margin, float* scratch)
      : block_(block), recursions_(recursions), size_(size), margin_(margin), scratch_(scratch) {}

  // `margin` more pixels around the rectangle are computed.
  static int64_t halo(int64_t recursions, int64_t margin) { return 2 * recursions + margin; }
  static int64_t plane_floats(const PackedDenseBlock& block, int64_t halo) {
    return Plane::kRingRows * (kColumns + 2 * halo + 2) * block.dense();
  }
  static int64_t floats(const PackedDenseBlock& block, int64_t recursions, int64_t margin) {
    return strip_floats(block) + (recursions + 1) * plane_floats(block, halo(recursions, margin));
  }

  // first(y, begin, end, plane) gives row y of x₀ to the plane; last(y, plane) takes row y of x_R from it.
  template <class First, class Last>
  void run(int64_t top, int64_t bottom, int64_t left, int64_t right, const First& first, const Last& last) {
    left_ = left;
    right_ = right;
    top_ = top;
    const int64_t halo = this->halo(recursions_, margin_);
    std::memset(plane(0).data, 0, (recursions_ + 1) * plane_floats(block_, halo) * sizeof(float));
    for (int64_t y = top - halo; y < bottom + halo; ++y) {
      if (inside(y))
        first(y, begin(0), end(0), plane(0));
      else
        clear(plane(0), y);
      advance(0, y, last);
    }
  }

 private:
  int64_t halo_of(int64_t r) const { return halo(recursions_ - r, margin_); }  // of x_r
  int64_t begin(int64_t r) const { return max(left_ - halo_of(r), 0); }
  int64_t end(int64_t r) const { return min(right_ + halo_of(r), size_.width); }
  bool inside(int64_t y) const { return y >= 0 && y < size_.height; }
  Plane plane(int64_t r) const {
    const int64_t halo = this->halo(recursions_, margin_);
    return {scratch_ + strip_floats(block_) + r * plane_floats(block_, halo), block_.dense(),
            (kColumns + 2 * halo + 2) * block_.dense(), left_ - halo - 1, true};
  }
  static void clear(const Plane& plane, int64_t y) { std::memset(plane.row(y), 0, plane.row_floats * sizeof(float)); }

  // Row y of x_r has come: row y - 1 of its `a` and row y - 2 of x_{r+1} can be computed.
  template <class Last>
  void advance(int64_t r, int64_t y, const Last& last) {
    if (r == recursions_) return last(y, plane(r));
    const Plane records = plane(r), next = plane(r + 1);
    const int64_t come = y - (top_ - halo_of(r));  // rows before this one
    if (come >= 2 && inside(y - 1))
      first_growth_row(block_, records, y - 1, max(left_ - halo_of(r) + 1, 0),
                       min(right_ + halo_of(r) - 1, size_.width), scratch_);
    if (come < 4) return;
    if (inside(y - 2))
      second_growth_row(
          block_, records, y - 2, begin(r + 1), end(r + 1), [&](int64_t x) { return next.at(y - 2, x); }, next.pitch,
          scratch_);
    else
      clear(next, y - 2);
    advance(r + 1, y - 2, last);
  }

  const PackedDenseBlock& block_;
  int64_t recursions_;
  Size size_;
  int64_t margin_;
  float* scratch_;
  int64_t left_ = 0, right_ = 0, top_ = 0;
};

// body(image, top, bottom, left, right, scratch) for the rectangles that workers take: as many strips of columns as
// make equal shares, or, where there are fewer than workers, bands of rows of them. A pixel's bits do not depend on it.
template <class Body>
void for_rectangles(ThreadPool& pool, Size size, int64_t scratch_floats, const Body& body) {
  int64_t strips = ceil_div(size.width, DenseStrip::kColumns), bands = 1;
  if (size.batch * strips < pool.size())
    bands = min(ceil_div(pool.size(), size.batch * strips), ceil_div(size.height, DenseStrip::kLeastRows));
  else if (size.batch == 1)
    strips = min(ceil_div(strips, pool.size()) * pool.size(), size.width);
  for_blocks(pool, size.batch * strips * bands, scratch_floats, [&](int64_t block, float* scratch) {
    const int64_t strip = block % strips, band = block / strips % bands, image = block / strips / bands;
    body(image, band * size.height / bands, (band + 1) * size.height / bands, strip * size.width / strips,
         (strip + 1) * size.width / strips, scratch);
  });
}

inline void dense_recursion_in_strips(ThreadPool& pool, const DenseRecursion& op, const PackedDenseBlock& block,
                                      Size size, const float* u, float* y) {
  for_rectangles(pool, size, DenseStrip::floats(block, op.recursions, 0),
                 [&](int64_t image, int64_t top, int64_t bottom, int64_t left, int64_t right, float* scratch) {
                   DenseStrip strip(block, op.recursions, size, 0, scratch);
                   strip.run(
                       top, bottom, left, right,
                       [&](int64_t row, int64_t begin, int64_t end, const Plane& plane) {
                         read_pixels(u, size, op.channels, block.x, image, row, begin, end, plane.at(row, begin),
                                     plane.pitch);
                       },
                       [&](int64_t row, const Plane& plane) {
                         write_pixels(plane.at(row, left), plane.pitch, size, op.channels, image, row, left, right, y);
                       });
                 });
}

// The records [x, a, b] of every block, each image with a margin of one pixel.
class SavedRecords {
 public:
  SavedRecords(const PackedDenseBlock& block, Size size, float* data) : block_(block), size_(size), data_(data) {}
  Plane plane(int64_t r, int64_t image) const {
    return Plane::whole(data_ + (r * size_.batch + image) * Plane::floats(size_, block_.record()), size_,
                        block_.record());
  }

 private:
  const PackedDenseBlock& block_;
  Size size_;
  float* data_;
};

// Zeroes what of a plane lies around row y: its two margin pixels, and the margin rows beside the first and last one.
inline void clear_margin(const Plane& plane, Size size, int64_t y) {
  const auto clear = [&](int64_t row, int64_t begin, int64_t end) {
    std::memset(plane.at(row, begin), 0, (end - begin) * plane.pitch * sizeof(float));
  };
  clear(y, -1, 0);
  clear(y, size.width, size.width + 1);
  if (y == 0) clear(-1, -1, size.width + 1);
  if (y == size.height - 1) clear(size.height, -1, size.width + 1);
}

constexpr int64_t kBand = 4;  // rows a worker takes at a time

// body(image, y, scratch) for every row.
template <class Body>
void for_rows(ThreadPool& pool, Size size, int64_t scratch_floats, const Body& body) {
  const int64_t rows = size.batch * size.height;
  for_blocks(pool, ceil_div(rows, kBand), scratch_floats, [&](int64_t block, float* scratch) {
    for (int64_t row = block * kBand; row < min((block + 1) * kBand, rows); ++row)
      body(row / size.height, row % size.height, scratch);
  });
}

inline void dense_recursion_saving(ThreadPool& pool, const DenseRecursion& op, const PackedDenseBlock& block, Size size,
                                   const float* u, float* saved, float* y) {
  const SavedRecords records(block, size, saved);
  for_rows(pool, size, 0, [&](int64_t image, int64_t row, float*) {
    for (int64_t r = 0; r < op.recursions; ++r) clear_margin(records.plane(r, image), size, row);
    const Plane plane = records.plane(0, image);
    read_pixels(u, size, op.channels, block.x, image, row, 0, size.width, plane.at(row, 0), plane.pitch);
  });
  for (int64_t r = 0; r < op.recursions; ++r) {
    for_rows(pool, size, strip_floats(block), [&](int64_t image, int64_t row, float* scratch) {
      first_growth_row(block, records.plane(r, image), row, 0, size.width, scratch);
    });
    const bool last = r == op.recursions - 1;
    const int64_t result_floats = last ? size.width * block.x : 0;
    for_rows(pool, size, strip_floats(block) + result_floats, [&](int64_t image, int64_t row, float* scratch) {
      float* result = scratch + strip_floats(block);
      const Plane from = records.plane(r, image), to = last ? from : records.plane(r + 1, image);
      second_growth_row(
          block, from, row, 0, size.width, [&](int64_t x) { return last ? result + x * block.x : to.at(row, x); },
          last ? block.x : to.pitch, scratch);
      if (last) write_pixels(result, block.x, size, op.channels, image, row, 0, size.width, y);
    });
  }
}

inline void dense_recursion(const DenseRecursion& op, Size size, const float* u, float* saved, float* y) {
  ThreadPool pool;
  const PackedDenseBlock block(op);
  if (saved) return dense_recursion_saving(pool, op, block, size, u, saved, y);
  dense_recursion_in_strips(pool, op, block, size, u, y);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
