// What tests of CUDA code need: fresh random data, guarded memory, comparison with float64, a list of tests.
#pragma once

#include <algorithm>
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

// Memory of the device and the host's copy of it, which tests fill and look at.
class Memory {
 public:
  explicit Memory(size_t bytes) : device_(bytes), host_(device_.bytes(), kGuard) {
    first_ = device_.inner_bytes() - (bytes + 15) / 16 * 16;
    last_ = first_ + bytes;
    std::fill(host_.begin() + first_, host_.begin() + last_, 0xff);
    live().push_back(this);
  }
  Memory(const Memory&) = delete;
  ~Memory() { live().erase(std::find(live().begin(), live().end(), this)); }

  uint8_t* host() { return host_.data() + first_; }
  size_t bytes() const { return last_ - first_; }
  // For kernels, with what the host has written.
  void* on_device() {
    if (!read_only_) device_.write(host_.data());
    return device_.begin() + first_;
  }
  void read_only() {
    on_device();
    device_.read_only();
    read_only_ = true;
  }
  void check_guards() const {
    for (size_t i = 0; i < host_.size(); ++i)
      if ((i < first_ || i >= last_) && host_[i] != kGuard)
        throw std::runtime_error(
            format("wrote outside its output, at %td", static_cast<std::ptrdiff_t>(i) - (i < first_ ? first_ : last_)));
  }

  // Waits for the kernels; then the host's copies are what they left.
  static void finish_run() {
    wait_for_device();
    for (Memory* const memory : live())
      if (!memory->read_only_) memory->device_.read(memory->host_.data());
  }
  // The host's copy of what kernels know by this address.
  static const void* host_of(const void* on_device) {
    for (Memory* const memory : live()) {
      const auto offset = static_cast<const uint8_t*>(on_device) - (memory->device_.begin() + memory->first_);
      if (offset >= 0 && offset < static_cast<std::ptrdiff_t>(memory->bytes())) return memory->host() + offset;
    }
    throw std::logic_error("no memory of a test");
  }

 private:
  static constexpr uint8_t kGuard = 0xa5;
  static std::vector<Memory*>& live() {
    static std::vector<Memory*> all;
    return all;
  }

  DeviceMemory device_;
  std::vector<uint8_t> host_;
  size_t first_, last_;  // what lies between the guards
  bool read_only_ = false;
};

template <class Element>
class Buffer : public Memory {
 public:
  explicit Buffer(int64_t count) : Memory(count * sizeof(Element)) {}

  Element* data() { return static_cast<Element*>(on_device()); }  // for kernels
  int64_t size() const { return bytes() / sizeof(Element); }
  Element& operator[](int64_t i) { return begin()[i]; }
  Element* begin() { return reinterpret_cast<Element*>(host()); }
  Element* end() { return begin() + size(); }
};

template <class Element>
const Element* host(const Element* on_device) {
  return static_cast<const Element*>(Memory::host_of(on_device));
}
inline void finish_run() { Memory::finish_run(); }

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
