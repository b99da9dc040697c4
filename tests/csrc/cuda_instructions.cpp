// What ptx.h's helpers for compute capability 8.0 do, against plain definitions: in the model this tests the model,
// compiled by nvcc it tests what the model assumes about the machine.
#include <algorithm>

#include "cuda/ptx.h"
#include "cuda_problems.h"

namespace cmslap::cuda::testing {
namespace {

// Numbers whose products and sums are exact in every type.
void small_integers(Type type, Buffer<uint16_t>& buffer) {
  for (uint16_t& word : buffer) word = encode(type, between(-4, 4));
}

void expect_equal(const char* what, const Values& got, const Values& want) {
  if (got != want) {
    const auto at = std::mismatch(got.begin(), got.end(), want.begin());
    throw std::runtime_error(format("%s[%td] is %g, not %g", what, at.first - got.begin(), *at.first, *at.second));
  }
}

// ---- Numbers ----

double by_definition(Type type, int word) {
  const int mantissa_bits = type == Type::kBFloat16 ? 7 : 10, bias = type == Type::kBFloat16 ? 127 : 15;
  const int mantissa = word & ((1 << mantissa_bits) - 1), exponent = (word & 0x7fff) >> mantissa_bits;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                         : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return word & 0x8000 ? -magnitude : magnitude;
}

TEST(instructions_numbers) {
  for (const Type type : {Type::kBFloat16, Type::kFloat16}) {
    const int infinity = type == Type::kBFloat16 ? 0x7f80 : 0x7c00;
    for (int word = 0; word < 0x10000; ++word) {
      if ((word & 0x7fff) >= infinity) continue;
      if (decode(type, word) != by_definition(type, word)) throw std::runtime_error(format("decode(%04x)", word));
      if (encode(type, by_definition(type, word)) != word) throw std::runtime_error(format("encode to %04x", word));
    }
    for (int i = 0; i < 10000; ++i) {  // between two numbers: the nearer one, of two equally near the even one
      const int word = between(0, infinity - 2);
      const double low = by_definition(type, word), high = by_definition(type, word + 1);
      const float value = static_cast<float>(low + (high - low) * between(0, 16) / 16);
      const double to_low = value - low, to_high = high - value;
      const int want = to_low < to_high || (to_low == to_high && word % 2 == 0) ? word : word + 1;
      if (encode(type, value) != want)
        throw std::runtime_error(format("encode(%g) is %04x", value, encode(type, value)));
    }
  }
}

template <class T>
__global__ void number_kernel(const float* values, float* unpacked, uint32_t* packed) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  packed[i] = pack<T>(values[2 * i], values[2 * i + 1]);
  const float2 pair = unpack<T>(packed[i]);
  unpacked[2 * i] = pair.x;
  unpacked[2 * i + 1] = pair.y;
}

TEST(instructions_pack) {
  const Type type = coin() ? Type::kBFloat16 : Type::kFloat16;
  constexpr int kCount = 2048;
  Inputs inputs(type);
  const auto numbers = inputs.floats(kCount, one_of<double>({1e-7, 1e-4, 1, 1000}));
  Values want_words, want;
  for (int i = 0; i < kCount; ++i) {
    want.push_back(decode(type, encode(type, numbers[i])));
    if (i % 2) want_words.push_back(encode(type, numbers[i - 1]) + 65536.0 * encode(type, numbers[i]));
  }
  Buffer<uint32_t> packed(kCount / 2);
  Buffer<float> unpacked(kCount);
  launch(type == Type::kBFloat16 ? number_kernel<BFloat16> : number_kernel<Float16>, dim3(kCount / 512), dim3(256), 0,
         nullptr, numbers, unpacked.data(), packed.data());
  finish_run();
  expect_equal("packed", values(packed), want_words);
  expect_equal("unpacked", values(unpacked), want);
}

// ---- Threads ----

constexpr int kExchanges = 4;

__global__ void exchange_kernel(float* out) {
  SHARED_MEMORY(shared);
  float* const floats = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, half = thread / 64;
  float* const mine = out + (blockIdx.x * blockDim.x + thread) * kExchanges;
  floats[thread] = thread;
  __syncthreads();
  mine[0] = floats[blockDim.x - 1 - thread];
  mine[1] = __shfl_sync(0xffffffffu, static_cast<float>(thread), 5);
  mine[2] = __shfl_xor_sync(0xffffffffu, static_cast<float>(thread), 6);
  __syncthreads();
  // Both halves of the block on their own.
  floats[thread] = 2 * thread;
  named_barrier_sync(1 + half, 64);
  mine[3] = floats[thread ^ 63];
}

TEST(instructions_threads) {
  constexpr int kThreads = 128, kBlocks = 3;
  Values want(kBlocks * kThreads * kExchanges);
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int thread = i % kThreads, lane = thread % 32;
    double* const of_thread = &want[i * kExchanges];
    of_thread[0] = kThreads - 1 - thread;
    of_thread[1] = thread - lane + 5;
    of_thread[2] = thread - lane + (lane ^ 6);
    of_thread[3] = 2 * (thread ^ 63);
  }
  float* out;
  run_and_check(
      [&](Outputs& outputs) {
        out = outputs.floats(want.size());
        launch(exchange_kernel, dim3(kBlocks), dim3(kThreads), kThreads * 4, nullptr, out);
      },
      [&] { expect_equal("thread", values(out, want.size()), want); });
}

// ---- cp.async ----

// A thread copies `count` pieces one by one, in a group each, and reads them behind; every third one does not exist.
__global__ void copy_kernel(const uint4* from, uint4* to, int count) {
  SHARED_MEMORY(shared);
  const int thread = threadIdx.x;
  const auto stage = [&](int i) { return (i % 3 * blockDim.x + thread) * 16; };
  const auto start = [&](int i) {
    const bool exists = i < count && i % 3 != 2;
    if (i < count)
      cp_async_16(shared_address(shared + stage(i)), exists ? from + i * blockDim.x + thread : nullptr, exists);
    cp_async_commit();
  };
  start(0);
  start(1);
  for (int i = 0; i < count; ++i) {
    start(i + 2);
    cp_async_wait<2>();
    to[i * blockDim.x + thread] = *reinterpret_cast<const uint4*>(shared + stage(i));
  }
}

TEST(instructions_cp_async) {
  constexpr int kThreads = 64, kCount = 7;
  Inputs inputs(Type::kFloat16);
  const auto from = inputs.words(kThreads * kCount * 8);
  Values want = values(Type::kFloat16, from, kThreads * kCount * 8);
  for (size_t i = 0; i < want.size(); ++i)
    if (i / (kThreads * 8) % 3 == 2) want[i] = 0;
  uint16_t* to;
  run_and_check(
      [&](Outputs& outputs) {
        to = outputs.words(kThreads * kCount * 8);
        launch(copy_kernel, dim3(1), dim3(kThreads), 3 * kThreads * 16, nullptr,
               reinterpret_cast<const uint4*>(from.on_device), reinterpret_cast<uint4*>(to), kCount);
      },
      [&] { expect_equal("copy", values(Type::kFloat16, to, kThreads * kCount * 8), want); });
}

// ---- ldmatrix ----

// registers [2 kinds, 4 registers, 32 lanes] of matrices [4, 8, 8]
__global__ void ldmatrix_kernel(const uint16_t* matrices, uint32_t* registers) {
  SHARED_MEMORY(shared);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) reinterpret_cast<uint16_t*>(shared)[i] = matrices[i];
  __syncwarp();
  const uint32_t row = shared_address(shared + lane * 16);
  uint32_t d[2][4];
  ldmatrix_x4(d[0], row);
  ldmatrix_x4_trans(d[1], row);
  for (int i = 0; i < 8; ++i) registers[i * 32 + lane] = d[i / 4][i % 4];
}

TEST(instructions_ldmatrix) {
  Inputs inputs(Type::kFloat16);
  const auto matrices = inputs.words(256);
  Values want(2 * 4 * 32, 0.0);
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        const double part = matrices[matrix * 64 + row * 8 + column];
        // "each row is held by four threads, two elements each", the lower element in the lower half
        const auto add = [&](int kind, int r, int c) {
          want[(kind * 4 + matrix) * 32 + 4 * r + c / 2] += c % 2 ? 65536 * part : part;
        };
        add(0, row, column);
        add(1, column, row);
      }
  Buffer<uint32_t> registers(2 * 4 * 32);
  launch(ldmatrix_kernel, dim3(1), dim3(32), 512, nullptr, matrices, registers.data());
  finish_run();
  expect_equal("registers", values(registers), want);
}

// ---- mma ----

// d[16, 8] += a[16, 16] · b[16, 8], once with b as it lies and once from its transpose
template <class T>
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, const uint16_t* b_transposed, float* d) {
  SHARED_MEMORY(shared);
  uint16_t* const words = reinterpret_cast<uint16_t*>(shared);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) words[i] = a[i];
  for (int i = lane; i < 128; i += 32) words[256 + i] = b[i], words[384 + i] = b_transposed[i];
  __syncwarp();
  uint32_t left[4], right[4];  // of the right operand two matrices, twice
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  ldmatrix_x4(left, shared_address(words + lane % 16 * 16 + lane / 16 * 8));
  ldmatrix_x4_trans(right, shared_address(words + 256 + lane % 16 * 8));
  mma_m16n8k16<T>(sums, left, {right[0], right[1]});
  ldmatrix_x4(right, shared_address(words + 384 + lane % 8 * 16 + lane / 8 % 2 * 8));
  mma_m16n8k16<T>(sums, left, {right[0], right[1]});
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

TEST(instructions_mma) {
  const Type type = coin() ? Type::kBFloat16 : Type::kFloat16;
  Buffer<uint16_t> a(256), b(128), b_transposed(128);
  small_integers(type, a);
  small_integers(type, b);
  Buffer<float> d(128);
  for (int i = 0; i < 128; ++i) d[i] = static_cast<float>(between(-9, 9));
  Values want = values(d);
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 8; ++n) {
      b_transposed[n * 16 + k] = b[k * 8 + n];
      for (int m = 0; m < 16; ++m) want[m * 8 + n] += 2 * decode(type, a[m * 16 + k]) * decode(type, b[k * 8 + n]);
    }
  launch(type == Type::kBFloat16 ? mma_kernel<BFloat16> : mma_kernel<Float16>, dim3(1), dim3(32), 1024, nullptr,
         a.data(), b.data(), b_transposed.data(), d.data());
  finish_run();
  expect_equal("d", values(d), want);
}

}  // namespace
}  // namespace cmslap::cuda::testing
