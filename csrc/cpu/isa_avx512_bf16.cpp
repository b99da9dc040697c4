// The kernels for bfloat16, for processors with AVX512-BF16; float32 is isa_avx512.cpp's. Headers of the standard
// library come before the pragma: what they define inline must stay runnable everywhere.
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)
#include <immintrin.h>

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif
#define CMSLAP_ISA avx512_bf16
#define CMSLAP_BFLOAT16
#define CMSLAP_VECTOR_BYTES 64
#define CMSLAP_VECTOR_REGISTERS 32
#include "table.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
