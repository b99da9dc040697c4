// The kernels of one instruction set, as kernels.cpp finds them.
#pragma once

#ifndef CMSLAP_BFLOAT16
#include "dense_gradient.h"
#endif
#include "dense_network.h"
#include "last_level.h"
#include "level.h"
#include "residual_head.h"

namespace cmslap::cpu::CMSLAP_ISA {

#ifdef CMSLAP_BFLOAT16
inline void embedding(const Embedding& op, Size size, const BFloat16* u, BFloat16* a) {
  embedding<BFloat16>(op, size, u, nullptr, a);
}

inline void level(const Embedding& op, const Upsampling& up, Size size, const BFloat16* u, BFloat16* f) {
  const Array<BFloat16> a(size.pixels() * op.channels);
  level<BFloat16>(op, up, size, u, nullptr, a.data(), f);
}

extern const BFloat16Kernels kKernels;
const BFloat16Kernels kKernels = {conv, embedding, upsampling, level, residual_head, dense_network, last_level};
#else
#define CMSLAP_NAME_OF(isa) #isa
#define CMSLAP_NAME(isa) CMSLAP_NAME_OF(isa)

extern const Kernels kKernels;
const Kernels kKernels = {
    CMSLAP_NAME(CMSLAP_ISA),  conv,          conv_backward,  embedding,     embedding_backward,     upsampling,
    upsampling_backward,      level,         level_backward, residual_head, residual_head_backward, dense_recursion,
    dense_recursion_backward, dense_network, last_level,
};
#endif

}  // namespace cmslap::cpu::CMSLAP_ISA
