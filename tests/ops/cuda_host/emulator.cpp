// The scheduler behind cuda_runtime.h: fibers for threads, and the few symbols of libtorch_cuda.
//
// Compiled without sanitizers, whatever the kernels are compiled with: SANITIZE_THREAD or
// SANITIZE_ADDRESS then says whom to tell about fibers, barriers and the ends of shared memory.
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#if defined(SANITIZE_THREAD)
#include <sanitizer/tsan_interface.h>
#define TSAN(call) call
#else
#define TSAN(call)
#endif
#if defined(SANITIZE_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(call) call
#else
#define ASAN(call)
#endif

namespace {

constexpr size_t kSharedCapacity = 48 * 1024;
constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  emulator::Place place;
  ucontext_t context;
  State state = State::kReady;
  char* stack;
  [[maybe_unused]] void* sanitizer = nullptr;
};

struct Warp {
  emulator::Collective kind;
  unsigned arrived = 0;
  uint64_t values[32], results[32];
  [[maybe_unused]] char order;  // its address is what memory ordering hangs on
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned waiting = 0;
  [[maybe_unused]] char order;
};

struct Scheduler {
  ucontext_t context;
  Block* block = nullptr;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::string failure;
  [[maybe_unused]] char begun, ended;  // a block, a thread: what memory ordering hangs on
  [[maybe_unused]] void* sanitizer = nullptr;
  [[maybe_unused]] const void* stack = nullptr;
  [[maybe_unused]] size_t stack_bytes = 0;
};

Scheduler scheduler;

unsigned thread_number() {
  return static_cast<unsigned>(scheduler.running - scheduler.block->fibers.data());
}

// From the running fiber back to the scheduler, until it is resumed.
void leave(State state) {
  Fiber* self = scheduler.running;
  self->state = state;
  TSAN(__tsan_switch_to_fiber(scheduler.sanitizer, __tsan_switch_to_fiber_no_sync));
  ASAN(__sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &self->sanitizer,
                                      scheduler.stack, scheduler.stack_bytes));
  swapcontext(&self->context, &scheduler.context);
  ASAN(__sanitizer_finish_switch_fiber(self->sanitizer, nullptr, nullptr));
}

void resume(Fiber& fiber) {
  scheduler.running = &fiber;
  TSAN(__tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync));
  ASAN(__sanitizer_start_switch_fiber(&scheduler.sanitizer, fiber.stack, kStackBytes));
  swapcontext(&scheduler.context, &fiber.context);
  ASAN(__sanitizer_finish_switch_fiber(scheduler.sanitizer, nullptr, nullptr));
}

[[noreturn]] void fail(const char* what) {
  char text[200];
  std::snprintf(text, sizeof(text), "%s (block %u, thread %u)", what,
                scheduler.running->place.block, scheduler.running->place.thread);
  scheduler.failure = text;
  leave(State::kDone);
  std::abort();
}

void fiber_main() {
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes));
  TSAN(__tsan_acquire(&scheduler.begun));
  (*scheduler.body)();
  TSAN(__tsan_release(&scheduler.ended));
  leave(State::kDone);
}

// Which threads and blocks go first: 0 ascending, 1 descending, else shuffled by that seed.
std::vector<unsigned> order_of(unsigned count, unsigned salt) {
  const char* text = std::getenv("D2DET_EMULATOR_ORDER");
  const unsigned kind = text == nullptr ? 0 : static_cast<unsigned>(std::atoi(text));
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = kind == 1 ? count - 1 - i : i;
  if (kind > 1) std::shuffle(order.begin(), order.end(), std::mt19937(kind + salt));
  return order;
}

// Stacks and the sanitizer's idea of a thread, made once and used in turn, by other threads of a
// block each time: making them is slow, and what one stack holds only its own thread may see.
struct Seat {
  char* stack;
  [[maybe_unused]] void* sanitizer = nullptr;
};

Seat& seat_of(unsigned block, unsigned thread, unsigned threads) {
  static const std::vector<Seat*> seats = [] {
    const long stacks = syscall(SYS_mmap, nullptr, kMaxThreads * kStackBytes,
                                PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == -1) std::abort();
    std::vector<Seat*> made;
    for (unsigned i = 0; i < kMaxThreads; ++i) {
      made.push_back(new Seat{reinterpret_cast<char*>(stacks) + i * kStackBytes});
    }
    return made;
  }();
  Seat& seat = *seats[(uint64_t(block) * threads + thread) % kMaxThreads];
  TSAN(if (seat.sanitizer == nullptr) seat.sanitizer = __tsan_create_fiber(0));
  return seat;
}

void start(Block& block, const cudaLaunchConfig_t& config, unsigned index) {
  const unsigned threads = config.blockDim.x;
  block.fibers.resize(threads);
  block.warps.resize(threads / 32);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.place = {t, index, threads, config.gridDim.x};
    const Seat& seat = seat_of(index, t, threads);
    fiber.stack = seat.stack;
    TSAN(fiber.sanitizer = seat.sanitizer);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  TSAN(__tsan_release(&scheduler.begun));
}

void run_block(const cudaLaunchConfig_t& config, unsigned index) {
  Block block;
  start(block, config, index);
  scheduler.block = &block;
  const auto threads = static_cast<unsigned>(block.fibers.size());
  bool moved = true;
  for (unsigned pass = 0; moved && scheduler.failure.empty(); ++pass) {
    moved = false;
    for (const unsigned t : order_of(threads, index * 31 + pass)) {
      if (block.fibers[t].state != State::kReady || !scheduler.failure.empty()) continue;
      moved = true;
      resume(block.fibers[t]);
    }
  }
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state != State::kDone && scheduler.failure.empty()) {
      scheduler.failure = "threads wait at a barrier or warp intrinsic that others never reach";
    }
  }
  scheduler.block = nullptr;
}

bool refused(const cudaLaunchConfig_t& config) {
  const dim3 grid = config.gridDim, threads = config.blockDim;
  return grid.x == 0 || grid.x > 0x7fffffffu || grid.y != 1 || grid.z != 1 || threads.x == 0 ||
         threads.x > kMaxThreads || threads.x % 32 != 0 || threads.y != 1 || threads.z != 1 ||
         config.dynamicSmemBytes > kSharedCapacity;
}

}  // namespace

alignas(4096) unsigned char d2det_shared[kSharedCapacity];

namespace {

// Fresh shared memory holds NaNs and minus ones, never what one would like to find there.
void renew_shared_memory() {
  // A new mapping makes the race detector forget the block before.
  TSAN(mmap(d2det_shared, kSharedCapacity, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  auto* words = reinterpret_cast<volatile uint64_t*>(d2det_shared);
  for (size_t i = 0; i < kSharedCapacity / sizeof(*words); ++i) words[i] = ~uint64_t(0);
}

}  // namespace

namespace emulator {

Place place() { return scheduler.running->place; }

int lane() { return static_cast<int>(thread_number() % 32); }

int compute_major() {
  const char* text = std::getenv("D2DET_EMULATOR_MAJOR");
  return text == nullptr ? 8 : std::atoi(text);
}

void sync_block() {
  Block& block = *scheduler.block;
  TSAN(__tsan_release(&block.order));
  if (++block.waiting == block.fibers.size()) {
    block.waiting = 0;
    for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
  } else {
    leave(State::kAtBarrier);
  }
  TSAN(__tsan_acquire(&block.order));
}

uint64_t exchange(Collective kind, unsigned mask, uint64_t value, int from) {
  Block& block = *scheduler.block;
  const unsigned self = thread_number(), first = self / 32 * 32;
  Warp& warp = block.warps[self / 32];
  if (mask != kAllLanes) fail("a warp intrinsic names only some lanes");
  if (warp.arrived != 0 && warp.kind != kind) fail("lanes of a warp meet in different intrinsics");
  warp.kind = kind;
  warp.values[self % 32] = value;
  warp.arrived |= 1u << self % 32;
  if (kind == Collective::kSyncWarp) TSAN(__tsan_release(&warp.order));
  if (warp.arrived == kAllLanes) {
    warp.arrived = 0;
    for (int i = 0; i < 32; ++i) warp.results[i] = warp.values[i];
    for (unsigned t = first; t < first + 32; ++t) block.fibers[t].state = State::kReady;
  } else {
    leave(State::kInWarp);
  }
  if (kind == Collective::kSyncWarp) TSAN(__tsan_acquire(&warp.order));
  return warp.results[from];
}

unsigned ballot(unsigned mask, bool value) {
  exchange(Collective::kBallot, mask, value, 0);
  const Warp& warp = scheduler.block->warps[thread_number() / 32];
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(warp.results[i] != 0) << i;
  return bits;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  if (refused(config)) return cudaErrorInvalidConfiguration;
  scheduler.failure.clear();
  scheduler.body = &thread;
  TSAN(scheduler.sanitizer = __tsan_get_current_fiber());
  [[maybe_unused]] const size_t used = config.dynamicSmemBytes;
  for (const unsigned index : order_of(config.gridDim.x, 0)) {
    renew_shared_memory();
    ASAN(__asan_poison_memory_region(d2det_shared + used, kSharedCapacity - used));
    run_block(config, index);
    ASAN(__asan_unpoison_memory_region(d2det_shared, kSharedCapacity));
    if (!scheduler.failure.empty()) return cudaErrorLaunchFailure;
  }
  TSAN(__tsan_acquire(&scheduler.ended));
  return cudaSuccess;
}

}  // namespace emulator

// What the kernels' host code asks of libtorch_cuda, and of a device that is not there.
extern "C" {
int aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
int aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int aoti_torch_delete_device_guard(void*) { return 0; }
int torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                             char** message) {
  if (error == cudaSuccess) return 0;
  const std::string text = error == cudaErrorInvalidConfiguration
                               ? "a device would refuse this launch"
                               : scheduler.failure;
  *message = strdup(text.c_str());
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }
}
