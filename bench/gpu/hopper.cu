// Measures the kernels for Hopper on a Hopper device, one built variant at a time: hopper.py builds and runs all.
//
// First it asks the tensor cores how they read an operand that starts in the middle of a swizzle's pattern, which is
// what all variants but the last rely on. Then every kernel must agree with the one for compute capability 8.0, and is
// timed on the three levels of the paper's training step. One line of JSON each, as soon as it is known.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "cuda/implementations.h"
#include "cuda/indexing_sm90.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

using namespace cmslap::cuda;
constexpr int kC = sm90::kChannels;

// ---- Device memory ----

template <class Element>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) { check(cudaMalloc(&data_, count * sizeof(Element)), "cudaMalloc"); }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  Element* data() const { return data_; }
  size_t bytes() const { return count_ * sizeof(Element); }
  void poison() const { check(cudaMemset(data_, 0xff, bytes()), "cudaMemset"); }
  std::vector<Element> host() const {
    std::vector<Element> values(count_);
    check(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  size_t count_;
  Element* data_;
};
using Map = Buffer<uint16_t>;

__global__ void fill_kernel(uint16_t* data, size_t count, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h = (h ^ h >> 16) * 0x85ebca6bu, h = (h ^ h >> 13) * 0xc2b2ae35u, h ^= h >> 16;
    data[i] = pack<BFloat16>((h / 2147483648.0f - 1.0f) * scale, 0) & 0xffff;
  }
}
void fill(const Map& map, uint32_t seed, float scale = 1) {
  fill_kernel<<<1024, 256>>>(map.data(), map.bytes() / 2, seed, scale);
  check(cudaGetLastError(), "fill");
}

double value(uint16_t word) {
  const uint32_t bits = uint32_t{word} << 16;
  float x;
  std::copy_n(reinterpret_cast<const char*>(&bits), 4, reinterpret_cast<char*>(&x));
  return x;
}
double difference(const Map& a, const Map& b, size_t count) {  // ‖a − b‖ / ‖b‖
  const std::vector<uint16_t> left = a.host(), right = b.host();
  double error = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    error += (value(left[i]) - value(right[i])) * (value(left[i]) - value(right[i]));
    norm += value(right[i]) * value(right[i]);
  }
  return std::sqrt(error / norm);
}
double larger(double a, double b) { return a > b || std::isnan(a) ? a : b; }

// ---- How the tensor cores read a shifted operand ----

constexpr int kBoxPixels = 160;
constexpr int kLeftBytes = sm90::kMatrixBytes;

// What element (row, column) of an operand of 64 columns in shared memory is to be.
template <class Value>
__device__ void write_operand(uint8_t* shared, uint32_t operand, int rows, Value value) {
  const uint32_t base = shared_address(shared);
  for (int i = threadIdx.x; i < rows * kC; i += blockDim.x) {
    const uint32_t at = sm90::swizzled(operand + i * 2) - base;
    *reinterpret_cast<uint16_t*>(shared + at) = pack<BFloat16>(value(i / kC, i % kC), 0) & 0xffff;
  }
}
HOST_DEVICE float box_value(int pixel, int channel) { return static_cast<float>((pixel * kC + channel) % 251); }

template <int kN>
__device__ void write_result(const float (&sum)[kN / 2], float* d) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + column + i % 2] = sum[i];
}

__device__ uint64_t shifted(uint32_t start, uint32_t leading, uint32_t stride, uint32_t base_offset) {
  return sm90::descriptor(start, leading, stride) | uint64_t{base_offset} << 49;
}

// d[64, 64] is a tile of pixels from pixel `shift` of a box on, its groups of eight `stride` bytes apart; transposed:
// as the operand whose sum is over pixels. The other operand is the identity.
template <bool kTransposed>
__global__ void shift_kernel(int shift, uint32_t stride, uint32_t base_offset, float* d) {
  __shared__ __align__(1024) uint8_t shared[kBoxPixels * sm90::kPixelBytes + kLeftBytes];
  const uint32_t pixels = shared_address(shared), identity = pixels + kBoxPixels * sm90::kPixelBytes;
  write_operand(shared, pixels, kBoxPixels, box_value);
  write_operand(shared, identity, kC, [](int row, int column) { return row == column ? 1.0f : 0.0f; });
  fence_proxy_async();
  __syncthreads();
  float sum[32];
  for (float& x : sum) x = 0;
  fence_registers(sum);
  wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    const uint32_t start =
        pixels + shift * sm90::kPixelBytes + (kTransposed ? step * 2 * stride : step * sm90::kStepBytes);
    const uint64_t a = sm90::descriptor(identity + step * sm90::kStepBytes, sm90::kLeadingUnread, sm90::kPatternBytes);
    wgmma<BFloat16, 64, 0, kTransposed>(sum, a, shifted(start, sm90::kLeadingUnread, stride, base_offset));
  }
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(sum);
  write_result<64>(sum, d);
}

template <bool kTransposed>
bool reads_shifted(int shift, int pitch, uint32_t base_offset) {
  Buffer<float> d(64 * 64);
  shift_kernel<kTransposed><<<1, 128>>>(shift, pitch * sm90::kPixelBytes, base_offset, d.data());
  check(cudaDeviceSynchronize(), "shifted operand");
  const std::vector<float> got = d.host();
  for (int pixel = 0; pixel < 64; ++pixel)
    for (int channel = 0; channel < 64; ++channel) {
      const float want = box_value(shift + pixel / 8 * pitch + pixel % 8, channel);
      if (got[kTransposed ? pixel * 64 + channel : channel * 64 + pixel] != want) return false;
    }
  return true;
}

// A step of the weight gradient: both operands transposed, the sum over 16 pixels of a row. Columns of d[64, 192] are
// the channels of three rows of a box from pixel `shift` on, `leading` bytes apart; left is the identity, four times.
__global__ void taps_kernel(int shift, uint32_t leading, uint32_t base_offset, float* d) {
  __shared__ __align__(1024) uint8_t shared[kBoxPixels * sm90::kPixelBytes + kLeftBytes];
  const uint32_t pixels = shared_address(shared), left = pixels + kBoxPixels * sm90::kPixelBytes;
  write_operand(shared, pixels, kBoxPixels, box_value);
  write_operand(shared, left, 16, [](int pixel, int channel) { return pixel == channel % 16 ? 1.0f : 0.0f; });
  fence_proxy_async();
  __syncthreads();
  float sum[96];
  for (float& x : sum) x = 0;
  fence_registers(sum);
  wgmma_fence();
  const uint32_t start = pixels + shift * sm90::kPixelBytes;
  wgmma<BFloat16, 192, 1, 1>(sum, sm90::descriptor(left, sm90::kLeadingUnread, sm90::kPatternBytes),
                             shifted(start, leading, sm90::kPatternBytes, base_offset));
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(sum);
  write_result<192>(sum, d);
}

bool reads_taps(int shift, int pitch, uint32_t base_offset) {
  Buffer<float> d(64 * 192);
  taps_kernel<<<1, 128>>>(shift, pitch * sm90::kPixelBytes, base_offset, d.data());
  check(cudaDeviceSynchronize(), "operand of three taps");
  const std::vector<float> got = d.host();
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < 192; ++column)
      if (got[row * 192 + column] != box_value(shift + column / 64 * pitch + row % 16, column % 64)) return false;
  return true;
}

// For each start in the pattern, y or n: whether the operand is read as the kernels expect. One line of JSON.
void ask(const char* operand, int pitch, const std::function<bool(int shift, int pitch, uint32_t base_offset)>& reads) {
  for (const bool of_start : {false, true}) {
    std::string right;
    for (int shift = 0; shift < 8; ++shift) right += reads(shift, pitch, of_start ? shift : 0) ? "y" : "n";
    std::printf("{\"descriptor\": {\"operand\": \"%s\", \"pitch\": %d, \"base_offset\": \"%s\", \"right\": \"%s\"}}\n",
                operand, pitch, of_start ? "start >> 7 & 7" : "0", right.c_str());
    std::fflush(stdout);
  }
}

void ask_about_descriptors() {
  for (const int pitch : {8, 10}) {
    ask("over channels", pitch, reads_shifted<false>);
    ask("over pixels", pitch, reads_shifted<true>);
  }
  for (const int pitch : {18, 17}) ask("three taps, over pixels", pitch, reads_taps);  // of stride 1 and 2
}

// ---- Kernels ----

double microseconds(const std::function<void()>& run) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  for (int i = 0; i < 5; ++i) run();
  constexpr int kRuns = 20;
  std::vector<double> times;
  for (int repeat = 0; repeat < 9; ++repeat) {
    float milliseconds;
    check(cudaEventRecord(start), "cudaEventRecord");
    for (int i = 0; i < kRuns; ++i) run();
    check(cudaEventRecord(stop), "cudaEventRecord");
    check(cudaEventSynchronize(stop), "a kernel");
    check(cudaEventElapsedTime(&milliseconds, start, stop), "cudaEventElapsedTime");
    times.push_back(milliseconds * 1000 / kRuns);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Times both sets' kernels and prints a line of JSON; an error that is no number is null.
void report(const char* name, Size size, double maps, int bytes, double error, const std::function<void()>& mine,
            const std::function<void()>& other) {
  const double us = microseconds(mine), other_us = microseconds(other), pixels = maps * size.pixels();
  char number[32] = "null";
  if (std::isfinite(error)) std::snprintf(number, sizeof number, "%.3g", error);
  std::printf(
      "{\"kernel\": \"%s\", \"size\": [%d, %d, %d], \"error\": %s, \"us\": %.2f, \"tflops\": %.1f, \"gbs\": %.0f, "
      "\"sm80_us\": %.2f}\n",
      name, size.batch, size.height, size.width, number, us, pixels * 73728 / us * 1e-6, pixels * bytes / us * 1e-3,
      other_us);
  std::fflush(stdout);
}

// The maps of one size that all kernels share, random; y and total receive results, those of the sm_80 kernels beside
// them.
struct Maps {
  static constexpr int kCount = 5;

  explicit Maps(Size size)
      : size(size),
        elements(size.pixels() * kC),
        maps(kCount * elements),
        others(kCount * elements),
        large(4 * elements),
        matrices(9 * kC * kC),
        y(4 * elements),
        y80(4 * elements),
        total(elements),
        total80(elements),
        bias(kC) {
    fill(maps, 1), fill(others, 2), fill(large, 3), fill(matrices, 4, 0.06f);
    std::vector<float> numbers(kC);
    for (int i = 0; i < kC; ++i) numbers[i] = 0.01f * (i - 30);
    check(cudaMemcpy(bias.data(), numbers.data(), bias.bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  void poison() const { y.poison(), y80.poison(), total.poison(), total80.poison(); }

  Size size;
  size_t elements;
  Map maps, others, large, matrices, y, y80, total, total80;
  Buffer<float> bias;
};

void measure_conv(const Maps& m, const char* name, int bytes, Conv c) {
  const bool with_total = c.saved != nullptr && c.skip != nullptr;
  Conv c80 = c;
  Buffer<float> sums(sm90::conv_sum_rows(c) * kC), sums80(sm80::conv_sum_rows(c80) * kC);
  c.y = m.y.data(), c80.y = m.y80.data();
  if (c.saved != nullptr) c.sums = sums.data(), c80.sums = sums80.data();
  if (with_total) c.total = m.total.data(), c80.total = m.total80.data();
  const auto run = [&] { sm90::conv(c, nullptr); };
  const auto run80 = [&] { sm80::conv(c80, nullptr); };
  m.poison();
  run(), run80();
  double error = difference(m.y, m.y80, m.elements);
  if (with_total) error = larger(error, difference(m.total, m.total80, m.elements));
  report(name, m.size, 1, bytes, error, run, run80);
}

void measure_convs(const Maps& m) {
  const uint16_t *const skip = m.others.data(), *const saved = m.others.data() + m.elements;
  Conv c{};
  c.type = Type::kBFloat16, c.size = m.size, c.in = c.out = kC, c.slope = 0.2f;
  c.x = m.maps.data(), c.matrices = m.matrices.data(), c.bias = m.bias.data();
  measure_conv(m, "conv", 256, c);
  c.skip = skip;
  measure_conv(m, "conv, skip", 384, c);
  c.skip = nullptr, c.saved = saved, c.bias = nullptr, c.flipped = true;
  measure_conv(m, "data gradient", 384, c);
  c.skip = skip;
  measure_conv(m, "data gradient, total", 640, c);
}

void measure_transposed_conv(const Maps& m) {
  const TransposedConv up{Type::kBFloat16, m.size, kC, kC, m.maps.data(), m.matrices.data(), m.bias.data(), m.y.data()};
  TransposedConv up80 = up;
  up80.y = m.y80.data();
  const auto run = [&] { sm90::transposed_conv(up, nullptr); };
  const auto run80 = [&] { sm80::transposed_conv(up80, nullptr); };
  m.poison();
  run(), run80();
  report("transposed conv", m.size, 1, 640, difference(m.y, m.y80, 4 * m.elements), run, run80);
}

void measure_transposed_conv_gradient(const Maps& m) {
  const uint16_t* const saved = m.others.data() + m.elements;
  const TransposedConvGradient down{Type::kBFloat16, m.size, kC, kC, m.large.data(), m.matrices.data(), saved, 0.2f,
                                    m.total.data(),  nullptr};
  TransposedConvGradient down80 = down;
  down80.y = m.total80.data();
  const auto run = [&] { sm90::transposed_conv_gradient(down, nullptr); };
  const auto run80 = [&] { sm80::transposed_conv_gradient(down80, nullptr); };
  m.poison();
  run(), run80();
  const double error = difference(m.total, m.total80, m.elements);
  report("transposed conv, data gradient", m.size, 1, 768, error, run, run80);
}

// ‖a − b‖ / ‖b‖ of sums over shares.
double difference_of_sums(const Buffer<float>& a, int a_shares, const Buffer<float>& b, int b_shares, size_t count) {
  const std::vector<float> left = a.host(), right = b.host();
  double error = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    double left_sum = 0, right_sum = 0;
    for (int s = 0; s < a_shares; ++s) left_sum += left[s * count + i];
    for (int s = 0; s < b_shares; ++s) right_sum += right[s * count + i];
    error += (left_sum - right_sum) * (left_sum - right_sum), norm += right_sum * right_sum;
  }
  return std::sqrt(error / norm);
}

void measure_weight_gradient(const Maps& m, int stride) {
  WeightGradient g{};
  g.type = Type::kBFloat16, g.size = m.size, g.rows = g.columns = kC, g.stride = stride;
  g.maps = stride == 1 ? Maps::kCount : 1;
  g.left = m.maps.data(), g.right = stride == 1 ? m.others.data() : m.large.data();
  WeightGradient g80 = g;
  g.splits = sm90::weight_gradient_splits(g), g80.splits = sm80::weight_gradient_splits(g80);
  const size_t weights = size_t{9} * kC * kC * g.maps;
  Buffer<float> partials(g.splits * weights), partials80(g80.splits * weights);
  partials.poison(), partials80.poison();
  g.partials = partials.data(), g80.partials = partials80.data();
  const auto run = [&] { sm90::weight_gradient(g, nullptr); };
  const auto run80 = [&] { sm80::weight_gradient(g80, nullptr); };
  run(), run80();
  const double error = difference_of_sums(partials, g.splits, partials80, g80.splits, weights);
  report(stride == 1 ? "weight gradient" : "transposed conv, weight gradient", m.size, g.maps, stride == 1 ? 256 : 640,
         error, run, run80);
}

void measure(Size size) {
  const Maps m(size);
  measure_convs(m);
  measure_transposed_conv(m);
  measure_transposed_conv_gradient(m);
  measure_weight_gradient(m, 1);
  measure_weight_gradient(m, 2);
}

}  // namespace

int main() {
  try {
    ask_about_descriptors();
    measure({3, 45, 83});
    for (int side : {64, 128, 256}) measure({16, side, side});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
