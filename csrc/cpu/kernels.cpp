#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cmslap::cpu {

#ifdef __x86_64__
#if defined(__clang__) || __GNUC__ >= 11
#define CMSLAP_BFLOAT16_KERNELS
namespace avx512_bf16 {
extern const BFloat16Kernels kKernels;
}
#endif
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}

namespace {

struct Chosen {
  const Kernels& kernels;
  const BFloat16Kernels* bfloat16;
};

Chosen choose() {
  const char* variable = std::getenv("CMSLAP_ISA");
  const std::string forced = variable ? variable : "";
  std::string runnable;
#ifdef __x86_64__
  const bool avx2_runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512_runs = avx2_runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef CMSLAP_BFLOAT16_KERNELS
  const bool avx512_bf16_runs = avx512_runs && __builtin_cpu_supports("avx512bf16");
  if (avx512_bf16_runs && (forced.empty() || forced == "avx512_bf16"))
    return {avx512::kKernels, &avx512_bf16::kKernels};
  if (avx512_bf16_runs) runnable += "avx512_bf16, ";
#endif
  if (avx512_runs && (forced.empty() || forced == "avx512")) return {avx512::kKernels, nullptr};
  if (avx2_runs && (forced.empty() || forced == "avx2")) return {avx2::kKernels, nullptr};
  runnable += std::string(avx512_runs ? "avx512, " : "") + (avx2_runs ? "avx2, " : "");
#endif
  if (forced.empty() || forced == "portable") return {portable::kKernels, nullptr};
  throw std::invalid_argument("CMSLAP_ISA must be one of " + runnable + "portable on this processor, got " + forced);
}

const Chosen& chosen() {
  static const Chosen chosen = choose();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return chosen().kernels; }

const BFloat16Kernels* bfloat16_kernels() { return chosen().bfloat16; }

}  // namespace cmslap::cpu
