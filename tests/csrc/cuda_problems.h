// Small random problems for the functions of csrc/cuda/kernels.h: their sizes, their memory, the runs of a case, and
// the words of geometry in which definitions are written.
#pragma once

#include <climits>
#include <memory>

#include "cuda_testing.h"

namespace cmslap::cuda::testing {

using Values = std::vector<double>;

// ---- A problem ----

struct Problem {
  Type type;
  Size size;
  int in, out;
  double slope;
};

inline Problem random_problem(const std::vector<int>& channels, int height, int width) {
  return {coin() ? Type::kBFloat16 : Type::kFloat16,
          {between(1, 3), height, width},
          one_of(channels),
          one_of(channels),
          one_of<double>({0.2, 0.0, 1.0, 0.3})};
}
inline Problem random_problem(const std::vector<int>& channels) {
  static const std::vector<std::pair<int, int>> kSizes = {{1, 1},   {1, 2},  {3, 5},   {17, 9}, {9, 17},
                                                          {16, 16}, {5, 33}, {35, 18}, {2, 65}};
  const auto [height, width] = one_of(kSizes);
  max_multiprocessors() = one_of<int>({1, 1, 2, 3, INT_MAX});  // so that blocks have several tiles
  return random_problem(channels, height, width);
}
// All for one block, which has more tiles than any kernel has stages and consumers.
inline Problem problem_of_many_tiles(const std::vector<int>& channels) {
  max_multiprocessors() = 1;
  Problem problem = random_problem(channels, 67, 19);
  problem.size.batch = 1;
  return problem;
}

inline void describe(const std::string& what, const Problem& p, const std::string& more = "") {
  describe(format("%s %s [%d, %d, %d] channels %d to %d slope %g; %s", what.c_str(),
                  p.type == Type::kBFloat16 ? "bf16" : "fp16", p.size.batch, p.size.height, p.size.width, p.in, p.out,
                  p.slope, more.c_str()));
}

// ---- Its memory ----

// An input: read by kernels through a pointer, by tests as an array.
template <class Element>
struct Input {
  const Element *on_device, *on_host;

  Input(std::nullptr_t) : on_device(nullptr), on_host(nullptr) {}
  explicit Input(Buffer<Element>& buffer) : on_device(buffer.data()), on_host(buffer.begin()) {}
  operator const Element*() const { return on_device; }
  const Element& operator[](int64_t i) const { return on_host[i]; }
};

// Random, and read-only.
class Inputs {
 public:
  explicit Inputs(Type type) : type_(type) {}

  Input<uint16_t> words(int64_t count, double scale = 1) {
    words_.push_back(std::make_unique<Buffer<uint16_t>>(count));
    Buffer<uint16_t>& buffer = *words_.back();
    for (int64_t i = 0; i < count; ++i) buffer[i] = encode(type_, between(0, 63) ? normal(scale) : coin() ? 0.0 : -0.0);
    buffer.read_only();
    return Input(buffer);
  }
  Input<float> floats(int64_t count, double scale = 1) {
    floats_.push_back(std::make_unique<Buffer<float>>(count));
    Buffer<float>& buffer = *floats_.back();
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<float>(normal(scale));
    buffer.read_only();
    return Input(buffer);
  }

 private:
  Type type_;
  std::vector<std::unique_ptr<Buffer<uint16_t>>> words_;
  std::vector<std::unique_ptr<Buffer<float>>> floats_;
};

// Poisoned with NaN; null pointers where not wanted.
class Outputs {
 public:
  uint16_t* words(int64_t count, bool wanted = true) { return add(words_, count, wanted); }
  float* floats(int64_t count, bool wanted = true) { return add(floats_, count, wanted); }
  // Not poisoned, but with these numbers.
  float* floats_from(const Values& numbers) {
    floats_.push_back(std::make_unique<Buffer<float>>(numbers.size()));
    std::copy(numbers.begin(), numbers.end(), floats_.back()->begin());
    return floats_.back()->data();
  }

  void check_guards() const {
    for (const auto& buffer : words_) buffer->check_guards();
    for (const auto& buffer : floats_) buffer->check_guards();
  }
  std::string bits() const {
    std::string all;
    for (const auto& buffer : words_) all.append(reinterpret_cast<const char*>(buffer->host()), buffer->bytes());
    for (const auto& buffer : floats_) all.append(reinterpret_cast<const char*>(buffer->host()), buffer->bytes());
    return all;
  }

 private:
  template <class Element>
  static Element* add(std::vector<std::unique_ptr<Buffer<Element>>>& buffers, int64_t count, bool wanted) {
    if (!wanted) return nullptr;
    buffers.push_back(std::make_unique<Buffer<Element>>(count));
    return buffers.back()->data();
  }
  std::vector<std::unique_ptr<Buffer<uint16_t>>> words_;
  std::vector<std::unique_ptr<Buffer<float>>> floats_;
};

// A missing map reads as zeros.
inline Values values(Type type, const uint16_t* map, int64_t count) {
  Values values(count, 0.0);
  for (int64_t i = 0; map != nullptr && i < count; ++i) values[i] = decode(type, host(map)[i]);
  return values;
}
inline Values values(const float* map, int64_t count) {
  return map != nullptr ? Values(host(map), host(map) + count) : Values(count, 0.0);
}

template <class Element>
Values values(Buffer<Element>& buffer) {
  return Values(buffer.begin(), buffer.end());
}

// ---- Its runs ----

// Runs twice on fresh outputs, in opposite timings of the model. Both must end with the same bits, which `check` gets
// to see.
template <class Run, class Check>
void run_and_check(Run run, Check check) {
  std::string first;
  const int timing = between(0, kTimings - 1);
  for (int i = 0; i < 2; ++i) {
    set_timing(i == 0 ? timing : kTimings - 1 - timing, generator());
    Outputs outputs;
    run(outputs);
    finish_run();
    outputs.check_guards();
    if (i == 0) {
      check();
      first = outputs.bits();
    } else if (outputs.bits() != first) {
      throw std::runtime_error("other bits in another run");
    }
  }
}

// ---- Geometry ----

inline bool inside(Size s, int i, int j) { return i >= 0 && i < s.height && j >= 0 && j < s.width; }
inline int64_t pixel(Size s, int n, int i, int j) { return (int64_t{n} * s.height + i) * s.width + j; }
inline Size scaled(Size s, int factor) { return {s.batch, s.height * factor, s.width * factor}; }

template <class Body>
void for_pixels(Size s, Body body) {
  for (int n = 0; n < s.batch; ++n)
    for (int i = 0; i < s.height; ++i)
      for (int j = 0; j < s.width; ++j) body(n, i, j);
}

// body(tap, row, column) for the taps of a pixel's window that exist in a map of size s
template <class Body>
void for_taps(Size s, int i, int j, int stride, int pad, Body body) {
  for (int tap = 0; tap < 9; ++tap) {
    const int row = stride * i + tap / 3 - pad, column = stride * j + tap % 3 - pad;
    if (inside(s, row, column)) body(tap, row, column);
  }
}

inline double leaky_relu(double x, double slope) { return x > 0 ? x : x * slope; }

// ---- Sums over pixels ----

inline Values column_sums(const Values& rows, int64_t columns) {
  Values sums(columns, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) sums[i % columns] += rows[i];
  return sums;
}
inline Values absolute(Values values) {
  for (double& value : values) value = std::fabs(value);
  return values;
}

// Rows that add up to the sums of a map, of its values as computed or as rounded to its type.
inline void check_sums(const char* name, Type type, const Values& rows, int64_t columns, const Values& map) {
  Values rounded = map;
  for (double& value : rounded) value = decode(type, encode(type, value));
  const Values got = column_sums(rows, columns), slack = column_sums(absolute(map), columns);
  try {
    check_close(name, got, column_sums(map, columns), 1e-4, slack);
  } catch (const std::runtime_error&) {
    check_close(name, got, column_sums(rounded, columns), 1e-4, slack);
  }
}

}  // namespace cmslap::cuda::testing
