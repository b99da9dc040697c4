// The one list of the extension's operations: their schemas and the kernels behind them.
//
// Only the LibTorch stable ABI is used (torch/csrc/stable, torch/headeronly) and nothing of CPython's, so one
// binary serves every later version of both. Python loads it with torch.ops.load_library. Callers outside
// cmslap.ops use the operators of the `cmslap` namespace, registered in cmslap/ops/registration.py.

#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

STABLE_TORCH_LIBRARY(cmslap_cpu, m) {
  m.def("tied_conv_transpose2d(Tensor a, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cmslap_cpu, CPU, m) {
  m.impl("tied_conv_transpose2d", TORCH_BOX(&cmslap::cpu::tied_conv_transpose2d));
}
