#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#endif
#include <unistd.h>

namespace cmslap::cpu {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;

Buffer::Buffer(int64_t floats) : data_(nullptr), size_(floats) {
  if (floats == 0) return;
  // A tile's rows lie in different pages. Huge ones save most of the address translations, and the first touch is
  // cheaper.
  const int64_t alignment = floats * sizeof(float) >= 2 * kHugePage ? kHugePage : kCacheLine;
  const int64_t bytes = (floats * sizeof(float) + alignment - 1) / alignment * alignment;
  data_ = static_cast<float*>(std::aligned_alloc(alignment, bytes));
  if (!data_) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

namespace {

// Waits for what usually comes within microseconds, as the next convolution does, without the price of a sleep.
template <class Condition>
void spin_until(const Condition& condition) {
  for (int i = 0; i < 4000 && !condition(); ++i) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }
}

// One call of ThreadPool::run, on its caller's stack. Guarded by the helpers' mutex, but for `done`, which may be read
// without it.
struct Job {
  ThreadPool::Task task;
  const void* context;
  int64_t blocks;
  float* const* scratch;  // of each worker; the caller is the first
  int64_t workers, joined = 1, next = 0;
  std::atomic<int64_t> done{0};

  bool open() const { return next < blocks; }
};

class Helpers {
 public:
  // Those of this process: a fork inherits none.
  static Helpers& instance() {
    static std::mutex mutex;
    static Helpers* helpers = nullptr;  // never destroyed: threads sleep in it until the process ends
    static pid_t owner = -1;
    const std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
      helpers = new Helpers;
      owner = getpid();
    }
    return *helpers;
  }

  void run(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (static_cast<int64_t>(threads_.size()) < job.workers - 1) start();
    keep_away_from_caller();
    const auto place = jobs_.insert(jobs_.end(), &job);
    published_.fetch_add(1, std::memory_order_release);
    lock.unlock();
    work_.notify_all();
    lock.lock();
    work(job, 0, lock);
    jobs_.erase(place);
    lock.unlock();
    const auto finished = [&] { return job.done.load(std::memory_order_acquire) == job.blocks; };
    spin_until(finished);
    lock.lock();
    finished_.wait(lock, finished);
  }

 private:
  void start() {
    std::thread thread([this] { help(); });
    threads_.push_back(thread.native_handle());
    thread.detach();
    avoided_ = -1;
  }

  // Where no processor idles, be it that one has the least important work only, Linux wakes a thread where it slept,
  // and it may stay behind the caller for good while the other processor does something else.
  void keep_away_from_caller() {
#ifdef __linux__
    const int processor = sched_getcpu();
    cpu_set_t allowed;
    if (processor < 0 || processor == avoided_ || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    if (CPU_COUNT(&allowed) > 1) CPU_CLR(processor, &allowed);
    for (const auto thread : threads_) pthread_setaffinity_np(thread, sizeof allowed, &allowed);
    avoided_ = processor;
#endif
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      const auto job = std::find_if(jobs_.begin(), jobs_.end(),
                                    [](const Job* job) { return job->open() && job->joined < job->workers; });
      if (job != jobs_.end()) {
        work(**job, (*job)->joined++, lock);
        continue;
      }
      const uint64_t seen = published_.load(std::memory_order_relaxed);
      lock.unlock();
      const auto more = [&] { return published_.load(std::memory_order_acquire) != seen; };
      spin_until(more);
      lock.lock();
      work_.wait(lock, more);
    }
  }

  // Takes blocks until there are none. The job may be gone when a helper returns.
  void work(Job& job, int64_t worker, std::unique_lock<std::mutex>& lock) {
    while (job.open()) {
      const int64_t block = job.next++;
      lock.unlock();
      job.task(job.context, block, job.scratch[worker]);
      lock.lock();
      if (job.done.fetch_add(1, std::memory_order_release) + 1 == job.blocks) finished_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, finished_;
  std::list<Job*> jobs_;
  std::atomic<uint64_t> published_{0};
  std::vector<std::thread::native_handle_type> threads_;
  int avoided_ = -1;  // the processor the caller was on
};

}  // namespace

ThreadPool::ThreadPool() : scratch_(std::max<int64_t>(1, thread_count())) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t blocks, int64_t scratch_floats, Task task, const void* context) {
  const int64_t workers = std::min(blocks, size());
  std::vector<float*> scratch;
  for (int64_t worker = 0; worker < workers; ++worker) {
    if (scratch_[worker].size() < scratch_floats) scratch_[worker] = Buffer(scratch_floats);
    scratch.push_back(scratch_[worker].data());
  }
  if (workers <= 1) {
    for (int64_t block = 0; block < blocks; ++block) task(context, block, scratch[0]);
    return;
  }
  Job job{task, context, blocks, scratch.data(), workers};
  Helpers::instance().run(job);
}

}  // namespace cmslap::cpu
