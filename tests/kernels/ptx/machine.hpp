// Runs a kernel's PTX on the CPU, one thread at a time, as strictly as the memory model allows.
//
// Every access is checked for bounds and alignment. Shared memory begins as NaN. A cp.async destroys what it will
// overwrite when it is issued and delivers when it is waited for, at the latest moment that is allowed. Lanes run
// from one warp-wide instruction to the next, for which all must be at the same one, and warps as far ahead of each
// other as barriers let them: the first one first, the last one first, or shuffled. Or the lanes of a warp run
// together where they are at the same instruction, those that are behind first: some ten times faster.
//
// The approximate functions (ex2, rcp, ...) are the C library's: their error on a device is not shown here.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <random>

#include "module.hpp"

namespace ptx {

enum class Schedule { FORWARD, BACKWARD, SHUFFLED, TOGETHER };

struct Argument {
    uint64_t bits = 0;
    uint32_t bytes = 0;
    template <typename T>
    Argument(T value) : bytes(sizeof(T)) {
        static_assert(sizeof(T) <= 8);
        std::memcpy(&bits, &value, sizeof(T));
    }
};

struct Extent { unsigned x = 1, y = 1, z = 1; };

class Machine {
public:
    explicit Machine(const Module& module) : module(module) {}

    // Memory that kernels may read and write.
    void allow(const void* start, size_t bytes) {
        allow(reinterpret_cast<uint64_t>(start), bytes, reinterpret_cast<uint8_t*>(const_cast<void*>(start)));
    }
    // The same, where a kernel knows it by another address.
    void allow(uint64_t address, size_t bytes, uint8_t* host) { regions.push_back({address, bytes, host}); }
    void forget() { regions.clear(); }

    // `parameters`: as the kernel declares them, each at its offset.
    void launch(const std::string& kernel, Extent grid, Extent block, size_t dynamic_shared,
                std::vector<uint8_t> parameters, Schedule schedule);

    void launch(const std::string& kernel, unsigned grid_x, unsigned grid_y, unsigned threads, size_t dynamic_shared,
                const std::vector<Argument>& arguments, Schedule schedule);

    uint64_t steps = 0;  // instructions executed by threads
    std::function<std::string(uint64_t)> describe;  // what an address is, where the caller knows more

private:
    struct Region { uint64_t start, bytes; uint8_t* host; };
    struct Copy { uint32_t to; const uint8_t* from; uint32_t bytes, source_bytes; };
    enum class State : uint8_t { READY, BARRIER, WARP, DONE };
    struct Thread {
        uint32_t program_counter = 0;
        State state = State::READY;
        std::vector<std::vector<Copy>> copies;
    };
    static constexpr unsigned WARP_SIZE = 32;
    static constexpr uint32_t ALL_LANES = ~0u;
    using Lanes = uint64_t[WARP_SIZE];

    const Module& module;
    std::vector<Region> regions;
    std::vector<uint32_t> region_of;  // of each instruction's last access: where its next one looks first
    const Kernel* kernel = nullptr;
    std::vector<Thread> threads;
    std::vector<uint64_t> registers;  // [warps, registers, lanes]
    std::vector<uint8_t> shared, parameters;
    Lanes nowhere;
    Extent grid, block, place;  // `place`: of the running block in the grid

    void run_block(Schedule schedule, std::mt19937& random);
    void run_together(unsigned warp);
    void run_lanes(unsigned warp, uint32_t lanes, uint32_t meeting);
    void step(unsigned warp, uint32_t lanes, const Instruction& instruction);
    void collective(unsigned warp);
    uint64_t* lanes_of(unsigned warp, uint32_t index) { return &registers[(static_cast<size_t>(warp) * kernel->registers + index) * WARP_SIZE]; }
    const uint64_t* filled(unsigned warp, uint32_t lanes, const Operand& operand, Lanes& scratch);
    // An operand's values, lane by lane: the registers themselves, or `scratch`.
    const uint64_t* read(unsigned warp, uint32_t lanes, const Operand& operand, Lanes& scratch) {
        return operand.kind == Operand::REGISTER ? lanes_of(warp, operand.index) : filled(warp, lanes, operand, scratch);
    }
    uint64_t* written(unsigned warp, const Operand& operand) {
        if (operand.kind == Operand::REGISTER) return lanes_of(warp, operand.index);
        if (operand.kind != Operand::NOTHING) fail("a result that is no register");
        return nowhere;
    }
    uint8_t* global(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    uint8_t* in_shared(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    uint8_t* memory(Space space, uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction);
    void calculate(unsigned warp, uint32_t lanes, const Instruction& instruction);
    uint64_t arithmetic(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
    uint64_t convert(const Instruction& instruction, uint64_t value);
    void product(unsigned warp, const Instruction& instruction);
    void load_matrices(unsigned warp, const Instruction& instruction);
    void shuffle(unsigned warp, const Instruction& instruction, uint32_t mask);
};

// Calls for each lane of a set.
template <typename Function>
inline void each(uint32_t lanes, Function function) {
    if (lanes == ~0u) {
#pragma GCC ivdep
        for (unsigned lane = 0; lane < 32; ++lane) function(lane);
        return;
    }
    for (; lanes != 0; lanes &= lanes - 1) function(static_cast<unsigned>(__builtin_ctz(lanes)));
}

}  // namespace ptx
