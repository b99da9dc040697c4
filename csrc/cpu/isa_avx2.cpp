// The kernels for processors with AVX2 and FMA. Headers of the standard library come before the pragma: what they
// define inline must stay runnable everywhere.
#ifdef __x86_64__
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define CMSLAP_ISA avx2
#define CMSLAP_VECTOR_BYTES 32
#define CMSLAP_VECTOR_REGISTERS 16
#include "table.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
