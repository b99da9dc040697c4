// The kernels for processors with AVX-512. Headers of the standard library come before the pragma: what they define
// inline must stay runnable everywhere.
#ifdef __x86_64__
#include <immintrin.h>

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define CMSLAP_ISA avx512
#define CMSLAP_VECTOR_BYTES 64
#define CMSLAP_VECTOR_REGISTERS 32
#include "table.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
