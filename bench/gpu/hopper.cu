// Measures the kernels for Hopper on a Hopper device, one built variant at a time: bench/hopper.py builds and runs all.
//
// First it asks the tensor cores how they read an operand that starts in the middle of a swizzle's pattern, which is
// what all variants but the last rely on. Then every kernel must agree with the one for compute capability 8.0, and is
// timed on the three levels of the paper's training step. One line of JSON each.
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
  void poison() { check(cudaMemset(data_, 0xff, bytes()), "cudaMemset"); }
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

// ---- How the tensor cores read a shifted operand ----

// d[64, 64] is a tile of pixels from pixel `shift` of a box on, its groups of eight `stride` bytes apart; transposed:
// as the operand whose sum is over pixels. The other operand is the identity.
template <bool kTransposed>
__global__ void shift_kernel(int shift, uint32_t stride, uint32_t base_offset, float* d) {
  __shared__ __align__(1024) uint8_t room[160 * sm90::kPixelBytes + 8192];
  const uint32_t pixels = shared_address(room), identity = pixels + 160 * sm90::kPixelBytes;
  const auto word = [&](uint32_t address) -> uint16_t& {
    return *reinterpret_cast<uint16_t*>(room + (address - pixels));
  };
  for (int i = threadIdx.x; i < 160 * kC; i += blockDim.x) {
    word(sm90::swizzled(pixels + i * 2)) = pack<BFloat16>(static_cast<float>(i % 251), 0) & 0xffff;
  }
  for (int i = threadIdx.x; i < kC * kC; i += blockDim.x) {
    word(sm90::swizzled(identity + i * 2)) = pack<BFloat16>(i / kC == i % kC ? 1.0f : 0.0f, 0) & 0xffff;
  }
  fence_proxy_async();
  __syncthreads();
  float sum[32];
  for (float& x : sum) x = 0;
  fence_registers(sum);
  wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    const uint32_t start =
        pixels + shift * sm90::kPixelBytes + (kTransposed ? step * 2 * stride : step * sm90::kStepBytes);
    const uint64_t b = sm90::descriptor(start, sm90::kLeadingUnread, stride) | uint64_t{base_offset} << 49;
    const uint64_t a = sm90::descriptor(identity + step * sm90::kStepBytes, sm90::kLeadingUnread, sm90::kPatternBytes);
    wgmma<BFloat16, 64, 0, kTransposed>(sum, a, b);
  }
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(sum);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
  for (int i = 0; i < 32; ++i) d[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + column + i % 2] = sum[i];
}

template <bool kTransposed>
bool reads_shifted(int shift, int pitch, uint32_t base_offset) {
  Buffer<float> d(64 * 64);
  shift_kernel<kTransposed><<<1, 128>>>(shift, pitch * sm90::kPixelBytes, base_offset, d.data());
  check(cudaDeviceSynchronize(), "shifted operand");
  const std::vector<float> got = d.host();
  for (int pixel = 0; pixel < 64; ++pixel)
    for (int channel = 0; channel < 64; ++channel) {
      const int at = (shift + pixel / 8 * pitch + pixel % 8) * 64 + channel;
      if (got[kTransposed ? pixel * 64 + channel : channel * 64 + pixel] != static_cast<float>(at % 251)) return false;
    }
  return true;
}

void ask_about_shifts() {
  for (int pitch : {8, 10}) {
    for (const bool by_address : {false, true}) {
      std::string right[2];
      for (int shift = 0; shift < 8; ++shift) {
        const uint32_t base_offset = by_address ? shift : 0;
        right[0] += reads_shifted<false>(shift, pitch, base_offset) ? "y" : "n";
        right[1] += reads_shifted<true>(shift, pitch, base_offset) ? "y" : "n";
      }
      std::printf(
          "{\"descriptor\": {\"pitch\": %d, \"base_offset\": \"%s\", \"over_channels\": \"%s\", \"over_pixels\": "
          "\"%s\"}}\n",
          pitch, by_address ? "start >> 7 & 7" : "0", right[0].c_str(), right[1].c_str());
    }
  }
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

void report(const char* name, Size size, double maps, int bytes, double error, const std::function<void()>& mine,
            const std::function<void()>& other) {
  const double us = microseconds(mine), other_us = microseconds(other), pixels = maps * size.pixels();
  std::printf(
      "{\"kernel\": \"%s\", \"size\": [%d, %d, %d], \"error\": %.3g, \"us\": %.2f, \"tflops\": %.1f, \"gbs\": %.0f, "
      "\"sm80_us\": %.2f}\n",
      name, size.batch, size.height, size.width, error, us, pixels * 73728 / us * 1e-6, pixels * bytes / us * 1e-3,
      other_us);
  std::fflush(stdout);
}

void measure(Size size) {
  constexpr int kMaps = 5;
  const size_t elements = size.pixels() * kC;
  Map maps(kMaps * elements), others(kMaps * elements), large(4 * elements), matrices(9 * kC * kC);
  Map y(4 * elements), y80(4 * elements), total(elements), total80(elements);
  fill(maps, 1), fill(others, 2), fill(large, 3), fill(matrices, 4, 0.06f);
  std::vector<float> host(kC);
  for (int i = 0; i < kC; ++i) host[i] = 0.01f * (i - 30);
  Buffer<float> bias(kC);
  check(cudaMemcpy(bias.data(), host.data(), bias.bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  const uint16_t *const skip = others.data(), *const saved = others.data() + elements;

  Conv c{Type::kBFloat16, size,    kC,      kC,      maps.data(), matrices.data(), false, 0.2f,
         bias.data(),     nullptr, nullptr, nullptr, nullptr,     nullptr};
  Buffer<float> sums(sm90::conv_sum_rows(c) * kC), sums80(sm80::conv_sum_rows(c) * kC);
  const auto conv = [&](const char* name, int bytes, bool with_total) {
    y.poison(), y80.poison(), total.poison(), total80.poison();
    Conv mine = c, other = c;
    mine.y = y.data(), other.y = y80.data();
    if (c.saved != nullptr) mine.sums = sums.data(), other.sums = sums80.data();
    if (with_total) mine.total = total.data(), other.total = total80.data();
    const auto run = [&] { sm90::conv(mine, nullptr); };
    const auto run80 = [&] { sm80::conv(other, nullptr); };
    run(), run80();
    double error = difference(y, y80, elements);
    if (with_total) error = std::max(error, difference(total, total80, elements));
    report(name, size, 1, bytes, error, run, run80);
  };
  conv("conv", 256, false);
  c.skip = skip;
  conv("conv, skip", 384, false);
  c.skip = nullptr, c.saved = saved, c.bias = nullptr, c.flipped = true;
  conv("data gradient", 384, false);
  c.skip = skip;
  conv("data gradient, total", 640, true);

  y.poison(), y80.poison();
  TransposedConv up{Type::kBFloat16, size, kC, kC, maps.data(), matrices.data(), bias.data(), y.data()}, up80 = up;
  up80.y = y80.data();
  const auto run_up = [&] { sm90::transposed_conv(up, nullptr); };
  const auto run_up80 = [&] { sm80::transposed_conv(up80, nullptr); };
  run_up(), run_up80();
  report("transposed conv", size, 1, 640, difference(y, y80, 4 * elements), run_up, run_up80);

  TransposedConvGradient down{Type::kBFloat16, size,  kC,   kC,           large.data(),
                              matrices.data(), saved, 0.2f, total.data(), nullptr};
  TransposedConvGradient down80 = down;
  down80.y = total80.data();
  total.poison(), total80.poison();
  const auto run_down = [&] { sm90::transposed_conv_gradient(down, nullptr); };
  const auto run_down80 = [&] { sm80::transposed_conv_gradient(down80, nullptr); };
  run_down(), run_down80();
  report("transposed conv, data gradient", size, 1, 768, difference(total, total80, elements), run_down, run_down80);

  for (const int stride : {1, 2}) {
    WeightGradient g{Type::kBFloat16,
                     size,
                     kC,
                     kC,
                     stride == 1 ? kMaps : 1,
                     stride,
                     maps.data(),
                     stride == 1 ? others.data() : large.data(),
                     false,
                     0,
                     nullptr};
    WeightGradient g80 = g;
    g.splits = sm90::weight_gradient_splits(g), g80.splits = sm80::weight_gradient_splits(g80);
    const size_t weights = size_t{9} * kC * kC * g.maps;
    Buffer<float> partials(g.splits * weights), partials80(g80.splits * weights);
    g.partials = partials.data(), g80.partials = partials80.data();
    const auto run = [&] { sm90::weight_gradient(g, nullptr); };
    const auto run80 = [&] { sm80::weight_gradient(g80, nullptr); };
    run(), run80();
    const std::vector<float> shares = partials.host(), shares80 = partials80.host();
    double error = 0, norm = 0;
    for (size_t i = 0; i < weights; ++i) {
      double sum = 0, sum80 = 0;
      for (int s = 0; s < g.splits; ++s) sum += shares[s * weights + i];
      for (int s = 0; s < g80.splits; ++s) sum80 += shares80[s * weights + i];
      error += (sum - sum80) * (sum - sum80), norm += sum80 * sum80;
    }
    report(stride == 1 ? "weight gradient" : "transposed conv, weight gradient", size, g.maps, stride == 1 ? 256 : 640,
           std::sqrt(error / norm), run, run80);
  }
}

}  // namespace

int main() {
  try {
    ask_about_shifts();
    measure({3, 45, 83});
    for (int side : {64, 128, 256}) measure({16, side, side});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
