#include "engine.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

// Not compiled with the sanitizer, which would take what the engine keeps for itself for shared.
#if defined(HOST_WITH_TSAN)
#include <sanitizer/tsan_interface.h>
#define WITH_TSAN(statement) statement
#else
#define WITH_TSAN(statement)
#endif

// The linker's names for the ends of what __shared__ puts into its section; absent where a kernel has none.
extern "C" unsigned char __start_cuda_shared[] __attribute__((weak));
extern "C" unsigned char __stop_cuda_shared[] __attribute__((weak));

namespace host {

namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr unsigned WARP = 32;
// Three that are read, and one that a lane ahead of the others may write.
constexpr unsigned EXCHANGES = 4;

// Switches stacks: swapcontext would ask the kernel for its signal mask each time, and a shuffle is 32 switches.
#if defined(__x86_64__)
extern "C" void host_switch(void** from, void* to);
asm(R"(
.text
.globl host_switch
.type host_switch, @function
host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size host_switch, . - host_switch
)");
#endif

enum class State { READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber : Thread {
    State state = State::READY;
    std::vector<std::vector<Copy>> copies;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK_BYTES]};
#if defined(__x86_64__)
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
    void* tsan = nullptr;
    unsigned exchanges = 0;
};

struct Warp {
    uint64_t values[EXCHANGES][WARP];
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
Fiber* running = nullptr;
Block block;
std::vector<unsigned char> dynamic_bytes;
unsigned char* dynamic_start = nullptr;
const std::function<void()>* job = nullptr;
std::mt19937 random_order;
#if defined(__x86_64__)
void* scheduler_pointer = nullptr;
#else
ucontext_t scheduler_context;
#endif
void* scheduler_tsan = nullptr;
// What threads are ordered by: addresses that mean something to ThreadSanitizer only.
char barrier_order, atomic_order;

void to_scheduler() {
    WITH_TSAN(__tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync));
#if defined(__x86_64__)
    host_switch(&running->pointer, scheduler_pointer);
#else
    swapcontext(&running->context, &scheduler_context);
#endif
}

void to_fiber(Fiber& fiber) {
    running = &fiber;
    WITH_TSAN(__tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync));
#if defined(__x86_64__)
    host_switch(&scheduler_pointer, fiber.pointer);
#else
    swapcontext(&scheduler_context, &fiber.context);
#endif
}

void run_fiber() {
    // What the host wrote before the launch.
    WITH_TSAN(__tsan_acquire(&block));
    (*job)();
    running->state = State::DONE;
    WITH_TSAN(__tsan_release(&block));
    to_scheduler();
    std::abort();
}

void begin(Fiber& fiber, unsigned index) {
    fiber.index = {index, 0, 0};
    fiber.state = State::READY;
    fiber.copies.assign(1, {});
    fiber.exchanges = 0;
#if defined(__x86_64__)
    // As if run_fiber had been called: its return address, then six registers.
    uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack.get() + STACK_BYTES) / 16 * 16;
    uintptr_t* const words = reinterpret_cast<uintptr_t*>(top) - 8;
    std::fill(words, words + 8, 0);
    words[6] = reinterpret_cast<uintptr_t>(&run_fiber);
    fiber.pointer = words;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.context, run_fiber, 0);
#endif
    WITH_TSAN(fiber.tsan = __tsan_create_fiber(0));
}

// Lets everybody go who waits for nobody else any more; whether there was somebody.
bool release(unsigned threads) {
    unsigned waiting = 0, done = 0;
    for (unsigned i = 0; i < threads; ++i) waiting += fibers[i]->state == State::AT_BARRIER, done += fibers[i]->state == State::DONE;
    bool any = false;
    if (waiting > 0 && waiting + done == threads) {
        for (unsigned i = 0; i < threads; ++i) {
            if (fibers[i]->state == State::AT_BARRIER) fibers[i]->state = State::READY;
        }
        any = true;
    }
    for (unsigned warp = 0; warp < threads / WARP; ++warp) {
        const auto in_warp = [&](const std::unique_ptr<Fiber>& fiber) { return fiber->state == State::IN_WARP; };
        const auto first = fibers.begin() + warp * WARP;
        if (!std::all_of(first, first + WARP, in_warp)) continue;
        std::for_each(first, first + WARP, [](const std::unique_ptr<Fiber>& fiber) { fiber->state = State::READY; });
        any = true;
    }
    return any;
}

void run_block(unsigned threads, Schedule schedule) {
    if (__start_cuda_shared != nullptr) std::memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    std::fill(dynamic_bytes.begin(), dynamic_bytes.end(), 0xff);
    WITH_TSAN(scheduler_tsan = __tsan_get_current_fiber());
    WITH_TSAN(__tsan_release(&block));
    for (unsigned i = 0; i < threads; ++i) begin(*fibers[i], i);
    std::vector<unsigned> order(threads);
    for (;;) {
        for (unsigned i = 0; i < threads; ++i) order[i] = schedule == Schedule::BACKWARD ? threads - 1 - i : i;
        if (schedule == Schedule::SHUFFLED) std::shuffle(order.begin(), order.end(), random_order);
        bool all_done = true;
        for (unsigned i : order) {
            if (fibers[i]->state == State::READY) to_fiber(*fibers[i]);
            all_done = all_done && fibers[i]->state == State::DONE;
        }
        if (all_done) break;
        const bool ready = std::any_of(fibers.begin(), fibers.begin() + threads, [](const auto& fiber) { return fiber->state == State::READY; });
        if (!release(threads) && !ready) fail("threads wait for others that are elsewhere, or gone");
    }
    WITH_TSAN(__tsan_acquire(&block));
    for (unsigned i = 0; i < threads; ++i) WITH_TSAN(__tsan_destroy_fiber(fibers[i]->tsan));
}

void wait_as(State state) {
    running->state = state;
    to_scheduler();
}

}  // namespace

void fail(const std::string& message) {
    std::fprintf(stderr, "host: block (%u, %u): %s\n", block.index.x, block.index.y, message.c_str());
    std::_Exit(3);
}

void launch(Index grid, unsigned threads, size_t dynamic_shared, Schedule schedule, const std::function<void()>& body) {
    if (threads % WARP != 0) fail("a block that is not of whole warps");
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
    warps.resize(threads / WARP);
    // Exactly as many bytes as were asked for, so that the one after them is out of bounds; on 16 bytes.
    dynamic_bytes = std::vector<unsigned char>(dynamic_shared);
    dynamic_start = dynamic_bytes.data();
    job = &body;
    block.grid = grid;
    random_order.seed(1);
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            block.index = {x, y, 0};
            run_block(threads, schedule);
        }
    }
}

const Thread& this_thread() { return *running; }
const Block& this_block() { return block; }
unsigned char* dynamic_shared() { return dynamic_start; }

void block_barrier() {
    WITH_TSAN(__tsan_release(&barrier_order));
    wait_as(State::AT_BARRIER);
    WITH_TSAN(__tsan_acquire(&barrier_order));
}

// A warp's exchange orders its lanes, as the instructions that it stands for do.
const uint64_t* exchange(uint64_t value) {
    const unsigned index = running->index.x;
    Warp& warp = warps[index / WARP];
    uint64_t* const values = warp.values[running->exchanges++ % EXCHANGES];
    values[index % WARP] = value;
    WITH_TSAN(__tsan_release(&warp));
    wait_as(State::IN_WARP);
    WITH_TSAN(__tsan_acquire(&warp));
    return values;
}

void copy_later(const Copy& copy) { running->copies.back().push_back(copy); }

void commit_copies() { running->copies.push_back({}); }

std::vector<Copy> due_copies(size_t pending) {
    auto& groups = running->copies;
    std::vector<Copy> due;
    while (groups.size() > pending + 1) {
        due.insert(due.end(), groups.front().begin(), groups.front().end());
        groups.erase(groups.begin());
    }
    return due;
}

void enter_atomic() { WITH_TSAN(__tsan_acquire(&atomic_order)); }
void leave_atomic() { WITH_TSAN(__tsan_release(&atomic_order)); }

}  // namespace host
