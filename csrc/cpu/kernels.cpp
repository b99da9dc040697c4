#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cmslap::cpu {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CMSLAP_X86_KERNELS
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

static const Kernels& choose() {
  const char* variable = std::getenv("CMSLAP_ISA");
  const std::string forced = variable ? variable : "";
  std::string runnable;
#ifdef CMSLAP_X86_KERNELS
  const bool avx2_runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512_runs = avx2_runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512_runs && (forced.empty() || forced == "avx512")) return avx512::kKernels;
  if (avx2_runs && (forced.empty() || forced == "avx2")) return avx2::kKernels;
  runnable = std::string(avx512_runs ? "avx512, " : "") + (avx2_runs ? "avx2, " : "");
#endif
  if (forced.empty() || forced == "portable") return portable::kKernels;
  throw std::invalid_argument("CMSLAP_ISA must be one of " + runnable + "portable on this processor, got " + forced);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cmslap::cpu
