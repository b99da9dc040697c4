// launch() of csrc/cuda/launch.h for the model: it returns when the grid has run, and throws what went wrong in it.
#pragma once

#include <tuple>

#include "machine.h"

namespace cmslap::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  model::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

}  // namespace cmslap::cuda
