#include "instructions.h"

#include <algorithm>
#include <map>

namespace cmslap::cuda::model {

// ---- What a block has besides its memory ----

namespace {

struct Mbarrier {
  uint64_t phase = 0;
  int count, pending;
  int64_t bytes = 0;
  bool visible = false;  // to the copy engine
};
constexpr uint64_t kMbarrier = 0x7265697272616270;  // stands in the barrier's place in shared memory

struct Fragments {
  Thread* thread;
  float* d;
};
struct Product {
  Operands operands;
  int arrived = 0;  // threads
  Fragments of[kWarpgroup];
};
struct Warpgroup {
  uint64_t finished = 0;  // products before products.front()
  std::deque<Product> products;
};

std::map<uint32_t, Mbarrier> mbarriers;
std::vector<Warpgroup> warpgroups;

// Which warp's stmatrix wrote a 16-byte piece that fence_proxy_async has not yet shown to copy engine and wgmma, or -1.
std::vector<int> unfenced;

int& unfenced_at(uint32_t address) { return unfenced[(address - kSharedBase) / 16]; }

}  // namespace

void start_instructions() {
  mbarriers.clear();
  warpgroups.assign((threads_of_block() + kWarpgroup - 1) / kWarpgroup, {});
  unfenced.assign(kMaxSharedBytes / 16, -1);
}

void check_finished(Thread& thread) {
  if (!thread.stores.empty() || !thread.store_groups.empty()) fail("ends without waiting for its tma_store");
  if (thread.products_issued > warpgroups[thread.index / kWarpgroup].finished) fail("ends without waiting for wgmma");
}

std::string describe_mbarriers() {
  std::string text;
  for (const auto& [address, barrier] : mbarriers)
    text += "\n  mbarrier " + std::to_string(address) + ": phase " + std::to_string(barrier.phase) + " lacks " +
            std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) + " arrivals and " +
            std::to_string(barrier.bytes) + " bytes";
  return text;
}

// ---- cp.async ----

namespace {

void perform(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.destination, copy.source, 16);
  } else {
    std::memset(copy.destination, 0, 16);
  }
}

}  // namespace

void cp_async(uint32_t destination, const void* source, bool valid) {
  if (valid && reinterpret_cast<uintptr_t>(source) % 16 != 0)
    fail("cp.async from a global address that is no multiple of 16");
  const Copy copy{at_address(destination, 16, 16), source, valid};
  if (options.late) {
    this_thread().copies.push_back(copy);
  } else {
    perform(copy);
  }
}

void cp_async_commit() {
  Thread& thread = this_thread();
  thread.copy_groups.push_back(std::move(thread.copies));
  thread.copies.clear();
}

void cp_async_wait(int pending) {
  auto& groups = this_thread().copy_groups;
  for (; groups.size() > static_cast<size_t>(pending); groups.pop_front())
    for (const Copy& copy : groups.front()) perform(copy);
}

// ---- Matrices of a warp ----

namespace {

struct MatrixAccess {
  uint32_t* registers;
  uint32_t row;
  bool transposed;
};

// visit(register, first, second): where the two elements of a lane's register are in shared memory
template <class Visit>
void for_registers(void* const* lanes, Visit visit) {
  uint16_t* rows[kLanes];
  for (int i = 0; i < kLanes; ++i)
    rows[i] = reinterpret_cast<uint16_t*>(at_address(static_cast<MatrixAccess*>(lanes[i])->row, 16, 16));
  for (int lane = 0; lane < kLanes; ++lane) {
    const MatrixAccess& access = *static_cast<MatrixAccess*>(lanes[lane]);
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      uint16_t** const matrix = rows + 8 * i;
      if (access.transposed) {
        visit(access.registers[i], matrix[t][g], matrix[t + 1][g]);
      } else {
        visit(access.registers[i], matrix[g][t], matrix[g][t + 1]);
      }
    }
  }
}

void load(void* const* lanes) {
  for_registers(lanes, [](uint32_t& d, uint16_t& low, uint16_t& high) { d = low | uint32_t{high} << 16; });
}

void store(void* const* lanes) {
  for_registers(lanes, [](uint32_t& s, uint16_t& low, uint16_t& high) {
    low = static_cast<uint16_t>(s);
    high = static_cast<uint16_t>(s >> 16);
  });
  for (int lane = 0; lane < kLanes; ++lane)
    unfenced_at(static_cast<MatrixAccess*>(lanes[lane])->row) = this_thread().index / kLanes;
}

struct Fragment {  // of mma.m16n8k16
  Convert convert;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// A row of 16 numbers that are summed over, from the registers of four lanes.
void unpack_row(Convert convert, float* row, int lane, uint32_t low, uint32_t high) {
  const int t = 2 * (lane % 4);
  row[t] = convert(low & 0xffff);
  row[t + 1] = convert(low >> 16);
  row[t + 8] = convert(high & 0xffff);
  row[t + 9] = convert(high >> 16);
}

void multiply(void* const* lanes) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fragment& mine = *static_cast<Fragment*>(lanes[lane]);
    unpack_row(mine.convert, a[lane / 4], lane, mine.a[0], mine.a[2]);
    unpack_row(mine.convert, a[lane / 4 + 8], lane, mine.a[1], mine.a[3]);
    unpack_row(mine.convert, b[lane / 4], lane, mine.b[0], mine.b[1]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const d = static_cast<Fragment*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const float* const row = a[lane / 4 + i / 2 * 8];
      const float* const column = b[2 * (lane % 4) + i % 2];
      float sum = d[i];
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      d[i] = sum;
    }
  }
}

}  // namespace

void ldmatrix(uint32_t* d, bool transposed, uint32_t row) {
  MatrixAccess mine{d, row, transposed};
  warp_together(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", &mine, load);
}

void stmatrix_trans(uint32_t row, const uint32_t* s) {
  MatrixAccess mine{const_cast<uint32_t*>(s), row, true};
  warp_together("stmatrix.x4.trans", &mine, store);
}

void mma(Convert convert, float* d, const uint32_t* a, const uint32_t* b) {
  Fragment mine{convert, d, a, b};
  warp_together("mma", &mine, multiply);
}

// ---- mbarriers ----

namespace {

Mbarrier& find_mbarrier(uint32_t address) {
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end()) fail("no mbarrier at " + std::to_string(address));
  uint64_t word;
  std::memcpy(&word, at_address(address, 8, 8), 8);
  if (word != kMbarrier) fail("the mbarrier at " + std::to_string(address) + " was overwritten");
  return found->second;
}

void complete_phase_if_ready(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
}

}  // namespace

void mbarrier_init(uint32_t address, int arrivals) {
  std::memcpy(at_address(address, 8, 8), &kMbarrier, 8);
  Mbarrier barrier;
  barrier.count = barrier.pending = arrivals;
  require(arrivals > 0, "an mbarrier that waits for nobody");
  if (!mbarriers.emplace(address, barrier).second) fail("a second mbarrier at " + std::to_string(address));
}

void fence_barrier_init() {
  for (auto& [address, barrier] : mbarriers) barrier.visible = true;
}

void fence_proxy_async() { std::replace(unfenced.begin(), unfenced.end(), this_thread().index / kLanes, -1); }

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
  Mbarrier& barrier = find_mbarrier(address);
  if (barrier.pending == 0) fail("one arrival too many at the mbarrier at " + std::to_string(address));
  barrier.bytes += expected_bytes;
  --barrier.pending;
  complete_phase_if_ready(barrier);
}

void mbarrier_wait(uint32_t address, int parity) {
  require(parity == 0 || parity == 1, "an mbarrier's parity is 0 or 1");
  const Mbarrier& barrier = find_mbarrier(address);
  if ((barrier.phase & 1) != static_cast<uint64_t>(parity)) return;
  const uint64_t awaited = barrier.phase;
  wait_for_change(barrier.phase, "mbarrier %llu, phase %llu", address, awaited);
  if (barrier.phase != awaited + 1)
    fail("the mbarrier at " + std::to_string(address) + " went on by two phases unseen");
}

// ---- Copy engine ----

namespace {

uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

struct Box {  // one copy
  TensorMap map;
  int64_t corner[kMaxRank] = {};
  uint32_t shared;

  uint32_t size(int i) const { return i < map.rank ? map.box[i] : 1; }
  uint32_t bytes() const { return size(0) * size(1) * size(2) * size(3) * size(4) * 2; }
};

// visit(element of global memory or null if outside, element of shared memory)
template <class Visit>
void for_elements(const Box& box, Visit visit) {
  const TensorMap& map = box.map;
  uint32_t at[kMaxRank] = {};
  uint32_t address = box.shared;
  for (at[4] = 0; at[4] < box.size(4); ++at[4])
    for (at[3] = 0; at[3] < box.size(3); ++at[3])
      for (at[2] = 0; at[2] < box.size(2); ++at[2])
        for (at[1] = 0; at[1] < box.size(1); ++at[1]) {
          int64_t offset = 0;
          bool inside = true;
          for (int i = 1; i < map.rank; ++i) {
            const int64_t x = box.corner[i] + at[i];
            inside &= x >= 0 && x < static_cast<int64_t>(map.extents[i]);
            offset += x * static_cast<int64_t>(map.strides[i]);
          }
          for (uint32_t i = 0; i < box.size(0); ++i, address += 2) {
            const int64_t x = box.corner[0] + i;
            const bool exists = inside && x >= 0 && x < static_cast<int64_t>(map.extents[0]);
            const uint8_t* const global = exists ? map.data + offset + 2 * x : nullptr;
            uint8_t* const shared = shared_memory() + (swizzled(address) - kSharedBase);
            visit(reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(global)), reinterpret_cast<uint16_t*>(shared));
          }
        }
}

Box make_box(const TensorMap& map, uint32_t shared, int rank, const int* corner) {
  Box box;
  box.map = map;
  box.shared = shared;
  if (rank != map.rank)
    fail("a copy of rank " + std::to_string(rank) + " with a map of rank " + std::to_string(map.rank));
  std::copy(corner, corner + rank, box.corner);
  at_address(shared, box.bytes(), 128);
  return box;
}

void check(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("tensor map: ") + what);
}

}  // namespace

void check_tensor_map(const TensorMap& map) {
  check(reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && map.data != nullptr,
        "the tensor begins at a multiple of 16 bytes");
  for (int i = 0; i < map.rank; ++i) {
    check(map.extents[i] >= 1 && map.extents[i] <= uint64_t{1} << 32, "extents are 1 to 2^32");
    check(i == 0 || (map.strides[i] % 16 == 0 && map.strides[i] < uint64_t{1} << 40),
          "strides are multiples of 16 below 2^40");
    check(map.box[i] >= 1 && map.box[i] <= 256, "a box has 1 to 256 elements in each dimension");
  }
  // The device takes shorter rows too; nobody here needs to know how it lays them out.
  check(map.box[0] * 2 == 128, "rows of a box are as long as the swizzle's");
}

void tma_load(uint32_t destination, const TensorMap& map, uint32_t barrier, int rank, const int* corner) {
  require(find_mbarrier(barrier).visible, "a load for an mbarrier without fence_barrier_init");
  const Box box = make_box(map, destination, rank, corner);
  do_asynchronously([box, barrier] {
    for_elements(box, [](const uint16_t* global, uint16_t* shared) { *shared = global ? *global : 0; });
    Mbarrier& mbarrier = find_mbarrier(barrier);
    mbarrier.bytes -= box.bytes();
    complete_phase_if_ready(mbarrier);
  });
}

void tma_store(const TensorMap& map, uint32_t source, int rank, const int* corner) {
  const Box box = make_box(map, source, rank, corner);
  for (uint32_t piece = 0; piece < box.bytes(); piece += 16)
    require(unfenced_at(source + piece) < 0, "tma_store of what stmatrix wrote without fence_proxy_async");
  const auto store = [box] {
    for_elements(box, [](uint16_t* global, const uint16_t* shared) {
      if (global) *global = *shared;
    });
  };
  if (!options.late) store();
  this_thread().stores.push_back(options.late ? std::function<void()>(store) : [] {});
}

void tma_store_commit() {
  Thread& thread = this_thread();
  thread.store_groups.push_back(std::move(thread.stores));
  thread.stores.clear();
}

void tma_store_wait(int pending) {
  auto& groups = this_thread().store_groups;
  for (; groups.size() > static_cast<size_t>(pending); groups.pop_front()) {
    uint64_t finished = 0;
    do_asynchronously([&] {
      for (const auto& store : groups.front()) store();
      ++finished;
    });
    if (finished == 0) wait_for_change(finished, "its tma_store");
  }
}

// ---- wgmma ----

namespace {

constexpr uint32_t kPoison = 0xffffffff;

// The 16 bytes with elements (row, k) to (row, k + 7) of an operand, or (row, k) to (row + 7, k) of a transposed one;
// `row` is the row of a or the column of b. In the terms of the PTX ISA: the canonical layouts, K-major and MN-major.
const uint16_t* piece(uint64_t descriptor, bool transposed, uint32_t row, uint32_t k) {
  const auto field = [descriptor](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  require(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "a descriptor of another swizzle or base offset");
  const uint32_t offset = transposed ? row * 2 % 128 + row * 2 / 128 * leading + k % 8 * 128 + k / 8 * stride
                                     : row % 8 * 128 + row / 8 * stride + k * 2;
  const uint32_t address = swizzled(start + offset);
  const uint8_t* const bytes = at_address(address, 16, 16);
  require(unfenced_at(address) < 0, "wgmma with what stmatrix wrote without fence_proxy_async");
  return reinterpret_cast<const uint16_t*>(bytes);
}

// [16][rows], the sixteen that are summed over outermost.
void load_operand(const Operands& operands, uint64_t descriptor, bool transposed, uint32_t rows, float* values) {
  if (transposed) {
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t row = 0; row < rows; row += 8) {
        const uint16_t* const words = piece(descriptor, true, row, k);
        for (uint32_t i = 0; i < 8; ++i) values[k * rows + row + i] = operands.convert(words[i]);
      }
  } else {
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t k = 0; k < 16; k += 8) {
        const uint16_t* const words = piece(descriptor, false, row, k);
        for (uint32_t i = 0; i < 8; ++i) values[(k + i) * rows + row] = operands.convert(words[i]);
      }
  }
}

// The accumulator of a thread that products under way add to; what the thread sees in its place is poison.
InFlight& in_flight(Thread& thread, float* registers, int count) {
  for (InFlight& entry : thread.in_flight)
    if (entry.registers == registers) return entry;
  thread.in_flight.push_back({registers, 0, std::vector<float>(registers, registers + count)});
  std::memset(registers, 0xff, count * sizeof(float));
  return thread.in_flight.back();
}

void finish(Thread& thread, InFlight& entry) {
  if (--entry.products > 0) return;
  for (size_t i = 0; i < entry.values.size(); ++i)
    if (bits<uint32_t>(entry.registers[i]) != kPoison)
      fail("thread " + std::to_string(thread.index) + " wrote an accumulator that wgmma was adding to");
  std::copy(entry.values.begin(), entry.values.end(), entry.registers);
  std::swap(entry, thread.in_flight.back());
  thread.in_flight.pop_back();
}

void perform(const Product& product) {
  const Operands& operands = product.operands;
  const uint32_t columns = operands.columns;
  static float a[16 * 64], b[16 * 256], d[64 * 256];
  load_operand(operands, operands.a, operands.transposed_a, 64, a);
  load_operand(operands, operands.b, operands.transposed_b, columns, b);

  for (uint32_t row = 0; row < 64; ++row) {
    float* const sums = d + row * columns;
    std::fill(sums, sums + columns, 0.0f);
    for (int k = 0; k < 16; ++k) {
      const float left = a[k * 64 + row];
      for (uint32_t column = 0; column < columns; ++column) sums[column] += left * b[k * columns + column];
    }
  }
  for (int t = 0; t < kWarpgroup; ++t) {
    const Fragments& mine = product.of[t];
    InFlight* const hidden = options.late ? &in_flight(*mine.thread, mine.d, columns / 2) : nullptr;
    float* const registers = hidden ? hidden->values.data() : mine.d;
    for (uint32_t i = 0; i < columns / 2; ++i) {
      const uint32_t row = t / kLanes * 16 + t % kLanes / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
      registers[i] = d[row * columns + column] + (operands.accumulate ? registers[i] : 0.0f);
    }
    if (hidden) finish(*mine.thread, *hidden);
  }
}

bool same(const Operands& x, const Operands& y) {
  return x.convert == y.convert && x.columns == y.columns && x.a == y.a && x.b == y.b &&
         x.transposed_a == y.transposed_a && x.transposed_b == y.transposed_b && x.accumulate == y.accumulate;
}

Warpgroup& warpgroup() { return warpgroups[this_thread().index / kWarpgroup]; }

}  // namespace

// Threads don't wait for each other here: the product can begin when the last of them has come.
void wgmma(const Operands& operands, float* d) {
  Thread& thread = this_thread();
  Warpgroup& group = warpgroup();
  require(thread.fenced, "wgmma without wgmma_fence since its registers could be written");
  const size_t place = thread.products_issued++ - group.finished;
  if (place == group.products.size()) group.products.emplace_back().operands = operands;
  Product& product = group.products[place];
  if (!same(product.operands, operands)) fail("wgmma's operands differ within the warpgroup");
  Fragments& mine = product.of[thread.index % kWarpgroup];
  mine.thread = &thread;
  mine.d = d;
  if (options.late) ++in_flight(thread, d, operands.columns / 2).products;
  if (++product.arrived < kWarpgroup) return;
  do_asynchronously([&group] {
    perform(group.products.front());
    group.products.pop_front();
    ++group.finished;
  });
}

void wgmma_fence() { this_thread().fenced = true; }

void wgmma_commit() { this_thread().product_groups.push_back(this_thread().products_issued); }

void wgmma_wait(int pending) {
  Thread& thread = this_thread();
  Warpgroup& group = warpgroup();
  while (thread.product_groups.size() > static_cast<size_t>(pending)) {
    while (group.finished < thread.product_groups.front())
      wait_for_change(group.finished, "wgmma, with the other warps of the warpgroup");
    thread.product_groups.pop_front();
  }
  if (thread.product_groups.empty() && thread.products_issued <= group.finished) thread.fenced = false;
}

}  // namespace cmslap::cuda::model
