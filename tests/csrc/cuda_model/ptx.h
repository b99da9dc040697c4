// The names of csrc/cuda/ptx.h and of CUDA's language, as the model understands them.
#pragma once

#include <type_traits>

#include "instructions.h"

#define SHARED_MEMORY(name) uint8_t* const name = ::cmslap::cuda::model::shared_memory()
#define DEVICE inline

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads() { cmslap::cuda::model::barrier_sync(0, cmslap::cuda::model::threads_of_block()); }

namespace cmslap::cuda::model {

struct Exchange {
  uint32_t value;
  int source;
};
inline uint32_t shuffle(uint32_t mask, uint32_t value, int source, int width) {
  require(mask == 0xffffffffu, "a shuffle of some lanes only");
  require(width == kLanes, "a shuffle of part of the warp");
  Exchange mine{value, source};
  warp_together("shfl", &mine, [](void* const* lanes) {
    uint32_t values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<Exchange*>(lanes[lane])->value;
    for (int lane = 0; lane < kLanes; ++lane) {
      Exchange& exchange = *static_cast<Exchange*>(lanes[lane]);
      const bool inside = exchange.source >= 0 && exchange.source < kLanes;  // otherwise a lane gets its own value
      exchange.value = values[inside ? exchange.source : lane];
    }
  });
  return mine.value;
}
template <class Value>
Value shuffle(uint32_t mask, Value value, int source, int width) {
  static_assert(sizeof(Value) == 4, "shuffles move 32 bits");
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = shuffle(mask, word, source, width);
  std::memcpy(&value, &word, 4);
  return value;
}

}  // namespace cmslap::cuda::model

template <class Value>
Value __shfl_sync(uint32_t mask, Value value, int source, int width = 32) {
  return cmslap::cuda::model::shuffle(mask, value, source & 31, width);
}
template <class Value>
Value __shfl_xor_sync(uint32_t mask, Value value, int flip, int width = 32) {
  return cmslap::cuda::model::shuffle(mask, value, cmslap::cuda::model::this_thread().lane() ^ flip, width);
}
inline void __syncwarp() {
  cmslap::cuda::model::warp_together("__syncwarp", nullptr, [](void* const*) {});
}
namespace cmslap::cuda {

template <class T>
constexpr bool kIsBFloat16 = std::is_same_v<T, BFloat16>;
template <class T>
constexpr model::Convert kConvert = kIsBFloat16<T> ? model::from_bfloat16 : model::from_float16;

template <class T>
uint32_t pack(float low, float high) {
  const auto convert = kIsBFloat16<T> ? model::to_bfloat16 : model::to_float16;
  return convert(low) | uint32_t{convert(high)} << 16;
}
template <class T>
float2 unpack(uint32_t word) {
  return {kConvert<T>(word & 0xffff), kConvert<T>(word >> 16)};
}

inline uint32_t shared_address(const void* pointer) { return model::address_of(pointer); }
inline bool elect_one() { return model::this_thread().lane() == (model::options.late ? 17 : 0); }
inline void named_barrier_sync(int id, int threads) { model::barrier_sync(id, threads); }
template <int kRegisters>
void setmaxnreg_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
}
template <int kRegisters>
void setmaxnreg_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
}

inline uint4 load_16(const void* source) {
  model::require(reinterpret_cast<uintptr_t>(source) % 16 == 0, "ld.global.v4 at an address that is no multiple of 16");
  return *static_cast<const uint4*>(source);
}
inline void store_16(void* destination, const uint4& value) {
  model::require(reinterpret_cast<uintptr_t>(destination) % 16 == 0,
                 "st.global.v4 at an address that is no multiple of 16");
  *static_cast<uint4*>(destination) = value;
}
inline void cp_async_16(uint32_t destination, const void* source, bool valid) {
  model::cp_async(destination, source, valid);
}
inline void cp_async_16_if(bool wanted, uint32_t destination, const void* source, bool valid) {
  if (wanted) cp_async_16(destination, source, valid);
}
inline void cp_async_commit() { model::cp_async_commit(); }
template <int kPending>
void cp_async_wait() {
  model::cp_async_wait(kPending);
}

inline void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) { model::ldmatrix(d, false, row); }
inline void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row) { model::ldmatrix(d, true, row); }
inline void stmatrix_x4_trans(uint32_t row, const uint32_t (&s)[4]) { model::stmatrix_trans(row, s); }

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  model::mma(kConvert<T>, d, a, b);
}

inline void mbarrier_init(uint32_t barrier, int arrivals) { model::mbarrier_init(barrier, arrivals); }
inline void mbarrier_arrive(uint32_t barrier) { model::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) { model::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint32_t barrier, int parity) { model::mbarrier_wait(barrier, parity); }
inline void fence_barrier_init() { model::fence_barrier_init(); }
inline void fence_proxy_async() { model::fence_proxy_async(); }

using TensorMap = model::TensorMap;
inline void tma_load_3d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2) {
  const int corner[] = {c0, c1, c2};
  model::tma_load(destination, map, barrier, 3, corner);
}
inline void tma_load_4d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2, int c3) {
  const int corner[] = {c0, c1, c2, c3};
  model::tma_load(destination, map, barrier, 4, corner);
}
inline void tma_prefetch_4d(const TensorMap&, int, int, int, int) {}
inline void tma_store_4d(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3) {
  const int corner[] = {c0, c1, c2, c3};
  model::tma_store(map, source, 4, corner);
}
inline void tma_store_5d(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3, int c4) {
  const int corner[] = {c0, c1, c2, c3, c4};
  model::tma_store(map, source, 5, corner);
}
inline void tma_store_commit() { model::tma_store_commit(); }
template <int kPending>
void tma_store_wait() {
  model::tma_store_wait(kPending);
}
template <int kPending>
void tma_store_wait_read() {
  model::tma_store_wait(kPending);
}

inline void wgmma_fence() { model::wgmma_fence(); }
inline void wgmma_commit() { model::wgmma_commit(); }
template <int kPending>
void wgmma_wait() {
  model::wgmma_wait(kPending);
}
inline int afresh(int value) { return value; }
template <int kCount>
void fence_registers(float (&)[kCount]) {}
template <class T, int kN, int kTransposeA = 0, int kTransposeB = 0>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  model::wgmma({kConvert<T>, kN, kTransposeA != 0, kTransposeB != 0, accumulate, a, b}, d);
}

}  // namespace cmslap::cuda
