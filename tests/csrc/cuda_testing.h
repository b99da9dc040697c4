// What tests of CUDA code need: fresh random data, guarded memory, comparison with float64, a list of tests.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_model/numbers.h"
#include "cuda_place.h"

namespace cmslap::cuda::testing {

// ---- Words ----

// Says what is being tested, for whoever reads of a failure.
void describe(const std::string& what);
std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- Random choices ----

inline std::mt19937 generator;

inline int between(int first, int last) { return std::uniform_int_distribution<int>(first, last)(generator); }
inline bool coin() { return between(0, 1) == 1; }
template <class Value>
Value one_of(const std::vector<Value>& values) {
  return values[between(0, static_cast<int>(values.size()) - 1)];
}

// ---- Numbers of 16 bits ----

inline double decode(Type type, uint16_t word) {
  return type == Type::kBFloat16 ? model::from_bfloat16(word) : model::from_float16(word);
}
inline uint16_t encode(Type type, double value) {
  return type == Type::kBFloat16 ? model::to_bfloat16(static_cast<float>(value))
                                 : model::to_float16(static_cast<float>(value));
}
inline double unit(Type type) { return type == Type::kBFloat16 ? 0x1p-8 : 0x1p-11; }  // of rounding, relative

// ---- Guarded memory, poisoned with NaN of every type ----

template <class Element>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count), pages_(count * sizeof(Element)) {
    const size_t bytes = count * sizeof(Element);
    const size_t aligned = (bytes + 15) / 16 * 16;
    data_ = reinterpret_cast<Element*>(pages_.inner_end() - aligned);
    std::memset(pages_.begin(), kGuard, pages_.end() - pages_.begin());
    std::memset(data_, 0xff, bytes);
  }

  Element* data() { return data_; }
  int64_t size() const { return count_; }
  Element& operator[](int64_t i) { return data_[i]; }
  void read_only() { pages_.read_only(); }

  void check_guards() {
    uint8_t* const first = reinterpret_cast<uint8_t*>(data_);
    uint8_t* const last = first + count_ * sizeof(Element);
    for (uint8_t* p = pages_.begin(); p < pages_.end(); ++p)
      if ((p < first || p >= last) && *p != kGuard)
        throw std::runtime_error("wrote outside its output, at " + std::to_string(p < first ? p - first : p - last));
  }

 private:
  static constexpr uint8_t kGuard = 0xa5;
  int64_t count_;
  Pages pages_;
  Element* data_;
};

inline double normal(double scale) { return std::normal_distribution<double>(0, scale)(generator); }

// ---- Comparison ----

// |got - want| within `relative` of |want|, of the typical |want|, and of slack[i] where given. NaN is never within.
inline void check_close(const std::string& name, const std::vector<double>& got, const std::vector<double>& want,
                        double relative, const std::vector<double>& slack = {}) {
  if (got.size() != want.size()) throw std::logic_error(name + ": sizes differ");
  double squares = 0;
  for (const double value : want) squares += value * value;
  const double typical = want.empty() ? 0 : std::sqrt(squares / want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const double allowed = relative * (std::fabs(want[i]) + 0.5 * typical + (slack.empty() ? 0 : slack[i])) + 1e-30;
    if (std::fabs(got[i] - want[i]) <= allowed) continue;
    throw std::runtime_error(
        format("%s[%zu of %zu] is %g, not %g within %g", name.c_str(), i, want.size(), got[i], want[i], allowed));
  }
}

// ---- Tests ----

struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};
inline void needs_sm90() {
  if (!runs_sm90()) throw Skipped("needs a device of compute capability 9.0");
}

struct Test {
  std::string name;
  std::function<void()> run;
};
std::vector<Test>& tests();
struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                                                             \
  static void name();                                                          \
  static const ::cmslap::cuda::testing::Register register_##name(#name, name); \
  static void name()

}  // namespace cmslap::cuda::testing
