// The instructions the kernels are made of: thin helpers named after the PTX they wrap.
//
// nvcc compiles them as inline assembly. Any other compiler takes the same names from a model of a thread block that
// runs on the CPU (tests/csrc/cuda_model), so that the kernels, unchanged, are tested without a GPU and without CUDA.
// Addresses are of shared memory (shared_address) unless they are pointers, which are global or generic.
#pragma once

#include <cstdint>
#include <type_traits>

#include "elements.h"

#ifndef __CUDACC__
#include "cuda_model/ptx.h"
#else

#include <cuda.h>
#include <cuda_runtime.h>

#define SHARED_MEMORY(name) extern __shared__ __align__(1024) uint8_t name[]

namespace cmslap::cuda {

#define DEVICE __device__ __forceinline__

// ---- Elements ----

// Two numbers, rounded to nearest, as one word; the first is the one with the lower address.
template <class T>
DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

template <class T>
DEVICE float2 unpack(uint32_t word) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  } else {
    float2 pair;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(pair.x), "=f"(pair.y)
        : "r"(word));
    return pair;
  }
}

// ---- Threads ----

// The same value, which the compiler must not know for the same: what follows from it is computed where it stands,
// instead of being kept in registers from before a loop. No instruction.
DEVICE int afresh(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

DEVICE uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// One lane of the (converged) warp sees true, always the same one.
DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(elected));
  return elected != 0;
}

// Barriers 1 to 15; __syncthreads is barrier 0. `threads`, a multiple of 32, counts those who sync and those who
// arrive.
DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers a thread of this warpgroup may use from here on; all its warps execute it.
template <int kRegisters>
DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- 16 bytes of global memory in one access; the compiler may part an assignment of uint4 ----

DEVICE uint4 load_16(const void* source) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(__cvta_generic_to_global(source))
               : "memory");
  return value;
}
DEVICE void store_16(void* destination, const uint4& value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(destination)), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// ---- Copies of 16 bytes from global to shared memory ----

// Writes zeros, and reads nothing, where `valid` is false.
DEVICE void cp_async_16(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination),
               "l"(__cvta_generic_to_global(source)), "r"(valid ? 16 : 0)
               : "memory");
}
// The same where `wanted`, and nothing elsewhere: a predicate instead of a branch, which would part the products around
// it.
DEVICE void cp_async_16_if(bool wanted, uint32_t destination, const void* source, bool valid) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %3, 0; @p cp.async.cg.shared.global [%0], [%1], 16, %2;}" ::"r"(destination),
      "l"(__cvta_generic_to_global(source)), "r"(valid ? 16 : 0), "r"(int(wanted))
      : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's groups are under way.
template <int kPending>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- 8×8 matrices between shared memory and the lanes of a warp ----
//
// Lane 8·i + r gives the address of row r (16 bytes) of matrix i. Register i of lane l is row l / 4, columns 2·(l % 4)
// and the next of matrix i; of its transpose with _trans.

DEVICE void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row)
               : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row)
               : "memory");
}
DEVICE void stmatrix_x4_trans(uint32_t row, const uint32_t (&s)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(s[0]),
               "r"(s[1]), "r"(s[2]), "r"(s[3])
               : "memory");
}

// ---- Matrix product of a warp: d[16, 8] += a[16, 16] · b[16, 8] ----
//
// Lane l holds, with g = l / 4 and t = l % 4: of a the 8×8 matrices (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15),
// (8-15, 8-15) as ldmatrix leaves them; of b, transposed [8, 16], columns 0-7 and 8-15 likewise; of d the elements
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// ---- mbarriers: 8 bytes of shared memory that count a phase's arrivals and the bytes it still expects ----

DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, after adding to the bytes that this phase waits for.
DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity, 0 for the first, is complete; the phase before the first counts as complete.
DEVICE void mbarrier_wait(uint32_t barrier, int parity) {
  uint32_t complete;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(complete)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (complete == 0);
}
// Makes initialised barriers visible to the copy engine (and to a cluster's other blocks).
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Makes this thread's ordinary accesses to shared memory come before those of wgmma and the copy engine that follow.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Tiles of tensors between global and shared memory, moved by the copy engine ----
//
// One thread asks. Coordinates are in elements, innermost first, and may lie outside: loads bring zeros from there, and
// count them among the barrier's bytes; stores leave it out. The map is a __grid_constant__ parameter.

using TensorMap = CUtensorMap;

DEVICE void tma_load_3d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
DEVICE void tma_load_4d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// Tells the L2 cache of a box that will be loaded.
DEVICE void tma_prefetch_4d(const TensorMap& map, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(c0), "r"(c1),
               "r"(c2), "r"(c3)
               : "memory");
}
DEVICE void tma_store_4d(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(source), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}
DEVICE void tma_store_5d(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(source), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's groups of stores are under way; _read: until shared memory may be written
// again.
template <int kPending>
DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- Matrix product of a warpgroup, asynchronous: d[64, N] (+)= a[64, 16] · b[16, N] ----
//
// Warp w of the four holds rows 16·w to 16·w + 15 of d, for each group j of 8 columns the four elements that
// mma_m16n8k16 would: d[4·j ..]. Descriptors: indexing_sm90.h. A transposed operand lies with its row (a) or column (b)
// index contiguous instead of the 16 that are summed over.

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving accesses to registers that an asynchronous product uses across this point: before the
// first wgmma_fence and after the wgmma_wait of a product. No instruction.
template <int kCount>
DEVICE void fence_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Inline assembly numbers its operands: %0 to %(N/2 - 1) are the accumulator, then come a, b and the flags. D<count>:
// the accumulator's constraints; R<count>: its registers.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define D96(i) D64(i), D32(i + 64)
#define D128(i) D64(i), D64(i + 64)
#define R10(tens)                                                                                           \
  "%" #tens "0,%" #tens "1,%" #tens "2,%" #tens "3,%" #tens "4,%" #tens "5,%" #tens "6,%" #tens "7,%" #tens \
  "8,%" #tens "9"
#define R30 R10() "," R10(1) "," R10(2)
#define R60 R30 "," R10(3) "," R10(4) "," R10(5)
#define R90 R60 "," R10(6) "," R10(7) "," R10(8)
#define R120 R90 "," R10(9) "," R10(10) "," R10(11)
#define R32 R30 ",%30,%31"
#define R64 R60 ",%60,%61,%62,%63"
#define R96 R90 ",%90,%91,%92,%93,%94,%95"
#define R128 R120 ",%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_OF(type, n, count, a_text, b_text, accumulate_text, transpose_text)                                \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " accumulate_text ", 0; wgmma.mma_async.sync.aligned.m64n" #n      \
               "k16.f32." type "." type " {" R##count "}, " a_text ", " b_text ", p, 1, 1, " transpose_text ";}" \
               : D##count(0)                                                                                     \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(kTransposeA), "n"(kTransposeB)                        \
               : "memory")
#define WGMMA(...)                               \
  {                                              \
    if constexpr (std::is_same_v<T, BFloat16>) { \
      WGMMA_OF("bf16", __VA_ARGS__);             \
    } else {                                     \
      WGMMA_OF("f16", __VA_ARGS__);              \
    }                                            \
  }

// d = a · b, plus d if `accumulate`.
template <class T, int kN, int kTransposeA = 0, int kTransposeB = 0>
DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (kN == 64) WGMMA(64, 32, "%32", "%33", "%34", "%35, %36");
  if constexpr (kN == 128) WGMMA(128, 64, "%64", "%65", "%66", "%67, %68");
  if constexpr (kN == 192) WGMMA(192, 96, "%96", "%97", "%98", "%99, %100");
  if constexpr (kN == 256) WGMMA(256, 128, "%128", "%129", "%130", "%131, %132");
}

}  // namespace cmslap::cuda
#endif
