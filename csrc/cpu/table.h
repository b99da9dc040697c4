// The kernels of one instruction set, as kernels.cpp finds them.
#pragma once

#include "last_level.h"
#include "level.h"
#include "residual_head.h"

namespace cmslap::cpu::CMSLAP_ISA {

#define CMSLAP_NAME_OF(isa) #isa
#define CMSLAP_NAME(isa) CMSLAP_NAME_OF(isa)

extern const Kernels kKernels;
const Kernels kKernels = {
    CMSLAP_NAME(CMSLAP_ISA), conv,           conv_backward, embedding,     embedding_backward, upsampling,
    upsampling_backward,     level,          level_backward, residual_head, residual_head_backward, last_level,
};

}  // namespace cmslap::cpu::CMSLAP_ISA
