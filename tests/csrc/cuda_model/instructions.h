// What ptx.h's helpers do in the model. The layouts are those of the PTX ISA: "Matrix fragments for mma.m16n8k16",
// "ldmatrix", "Register fragments and shared memory matrix layouts" of wgmma, "Tensors: tiled mode, swizzling modes".
#pragma once

#include "cuda/elements.h"
#include "machine.h"
#include "numbers.h"

namespace cmslap::cuda::model {

void start_instructions();         // of a new block
void check_finished(Thread&);      // that nothing the thread began is still under way where that matters
std::string describe_mbarriers();  // for deadlocks

void cp_async(uint32_t destination, const void* source, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

void ldmatrix(uint32_t* d, bool transposed, uint32_t row);
void stmatrix_trans(uint32_t row, const uint32_t* s);

using Convert = float (*)(uint16_t);
void mma(Convert convert, float* d, const uint32_t* a, const uint32_t* b);

void mbarrier_init(uint32_t barrier, int arrivals);
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_wait(uint32_t barrier, int parity);
void fence_barrier_init();
void fence_proxy_async();

constexpr int kMaxRank = 5;
struct TensorMap {
  const uint8_t* data;
  int rank;
  uint64_t extents[kMaxRank], strides[kMaxRank];  // elements; bytes
  uint32_t box[kMaxRank];
};
void check_tensor_map(const TensorMap& map);
void tma_load(uint32_t destination, const TensorMap& map, uint32_t barrier, int rank, const int* corner);
void tma_store(const TensorMap& map, uint32_t source, int rank, const int* corner);
void tma_store_commit();
void tma_store_wait(int pending);

struct Operands {  // of a wgmma; every thread brings the same
  Convert convert;
  int columns;
  bool transposed_a, transposed_b, accumulate;
  uint64_t a, b;  // descriptors
};
void wgmma(const Operands& operands, float* d);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace cmslap::cuda::model
