#include "thread_pool.h"

#include <algorithm>
#include <atomic>

namespace cmslap::cpu {

ThreadPool::ThreadPool() : scratch_(std::max<int64_t>(1, thread_count())) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t blocks, int64_t scratch_floats, Task task, const void* context) {
  const int64_t workers = std::min(blocks, size());
  for (int64_t worker = 0; worker < workers; ++worker)
    if (scratch_[worker].size() < scratch_floats) scratch_[worker] = Buffer(scratch_floats);
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t block = next++; block < blocks; block = next++) task(context, block, scratch_[worker].data());
  };
  on_threads(
      workers, [](const void* body, int64_t worker) { (*static_cast<const decltype(work)*>(body))(worker); }, &work);
}

}  // namespace cmslap::cpu
