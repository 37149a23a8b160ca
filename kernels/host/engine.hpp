// Runs CUDA C++ on the CPU, a block at a time, each of its threads on a stack of its own.
//
// A thread runs until it must wait for others: at a barrier of its block, or for the lanes of its warp. Which one goes on is
// the schedule's choice, and the same bits must come of each. Shared memory begins as NaN. With -fsanitize=thread every
// thread of the block is one to ThreadSanitizer too, and only barriers order them: a missing one is a reported race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace host {

enum class Schedule { FORWARD, BACKWARD, SHUFFLED };

struct Index { unsigned x = 0, y = 0, z = 0; };

struct Thread { Index index; };
struct Block { Index index, grid; };

// Of 16 bytes, or of zeros where the source does not exist.
struct Copy {
    void* to;
    const void* from;
    bool exists;
};

// Runs `body` once for each thread of each block.
void launch(Index grid, unsigned threads, size_t dynamic_shared, Schedule schedule, const std::function<void()>& body);

[[noreturn]] void fail(const std::string& message);

// For the running thread.
const Thread& this_thread();
const Block& this_block();
unsigned char* dynamic_shared();
void block_barrier();
// What every lane of the warp gives, once all have; valid for two exchanges more.
const uint64_t* exchange(uint64_t value);
// Asynchronous copies of the running thread: kept, put into a group, and those of all but the last `pending` groups.
void copy_later(const Copy& copy);
void commit_copies();
std::vector<Copy> due_copies(size_t pending);
void enter_atomic();
void leave_atomic();

template <typename Function>
auto atomic(Function function) {
    enter_atomic();
    const auto result = function();
    leave_atomic();
    return result;
}

}  // namespace host
