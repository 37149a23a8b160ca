// Runs a kernel's PTX on the CPU, one thread at a time, as strictly as the memory model allows.
//
// Every access is checked for bounds and alignment. Shared memory begins as NaN. A cp.async destroys what it will
// overwrite when it is issued and delivers when it is waited for, at the latest moment that is allowed. Lanes run
// from one warp-wide instruction to the next, for which all must be at the same one, and warps as far ahead of each
// other as barriers let them: the first one first, the last one first, or shuffled.
//
// The approximate functions (ex2, rcp, ...) are the C library's: their error on a device is not shown here.
#pragma once

#include <cstddef>
#include <cstring>
#include <random>

#include "module.hpp"

namespace ptx {

enum class Schedule { FORWARD, BACKWARD, SHUFFLED };

struct Argument {
    uint64_t bits = 0;
    uint32_t bytes = 0;
    template <typename T>
    Argument(T value) : bytes(sizeof(T)) {
        static_assert(sizeof(T) <= 8);
        std::memcpy(&bits, &value, sizeof(T));
    }
};

class Machine {
public:
    explicit Machine(const Module& module) : module(module) {}

    // Memory that kernels may read and write.
    void allow(const void* start, size_t bytes) { regions.push_back({reinterpret_cast<uint64_t>(start), bytes}); }
    void forget() { regions.clear(); }

    void launch(const std::string& kernel, unsigned grid_x, unsigned grid_y, unsigned threads, size_t dynamic_shared,
                const std::vector<Argument>& arguments, Schedule schedule);

    uint64_t steps = 0;  // instructions executed by threads

private:
    struct Region { uint64_t start, bytes; };
    struct Copy { uint32_t to; uint64_t from; uint32_t bytes, source_bytes; };
    enum class State : uint8_t { READY, BARRIER, WARP, DONE };
    struct Thread {
        uint64_t* registers = nullptr;
        uint32_t program_counter = 0;
        State state = State::READY;
        std::vector<std::vector<Copy>> copies;
    };

    const Module& module;
    std::vector<Region> regions;
    const Kernel* kernel = nullptr;
    std::vector<Thread> threads;
    std::vector<uint64_t> registers;
    std::vector<uint8_t> shared, parameters;
    unsigned block_x = 0, block_y = 0, grid_x = 0, grid_y = 0;

    void run_block(Schedule schedule, std::mt19937& random);
    void run_thread(unsigned index);
    bool step(unsigned index, const Instruction& instruction);
    void collective(unsigned warp);
    uint64_t read(unsigned thread, const Operand& operand) const;
    void write(Thread& thread, const Operand& operand, uint64_t value);
    uint8_t* global(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    uint8_t* in_shared(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    uint8_t* memory(Space space, uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    uint64_t arithmetic(unsigned thread, const Instruction& instruction);
    uint64_t convert(const Instruction& instruction, uint64_t value);
    void product(unsigned warp, const Instruction& instruction);
    void load_matrices(unsigned warp, const Instruction& instruction);
    void shuffle(unsigned warp, const Instruction& instruction, uint32_t mask);
};

}  // namespace ptx
