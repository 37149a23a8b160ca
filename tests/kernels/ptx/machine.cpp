#include "machine.hpp"

#include <algorithm>
#include <cstdio>

namespace ptx {

namespace {

// Where shared memory lies among generic addresses.
constexpr uint64_t SHARED_WINDOW = uint64_t{1} << 60;
// Far above what any test takes: a loop without end.
constexpr uint64_t MOST_STEPS = uint64_t{1} << 36;

bool is_collective(Op op) {
    return op == Op::SHFL || op == Op::VOTE || op == Op::MMA || op == Op::LDMATRIX || op == Op::WARP_SYNC;
}

float as_float(uint64_t bits) {
    const uint32_t low = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &low, 4);
    return value;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

}  // namespace

void Machine::launch(const std::string& name, unsigned grid_columns, unsigned grid_rows, unsigned count,
                     size_t dynamic_shared, const std::vector<Argument>& arguments, Schedule schedule) {
    const auto found = module.kernels.find(name);
    if (found == module.kernels.end()) fail("no kernel " + name);
    const auto& declared = found->second.parameters;
    if (arguments.size() != declared.size()) fail(name + ": wrong number of arguments");
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].bytes != declared[i].bytes) fail(name + ": argument " + std::to_string(i) + " has the wrong size");
        bytes.resize(declared[i].offset + declared[i].bytes);
        std::memcpy(&bytes[declared[i].offset], &arguments[i].bits, declared[i].bytes);
    }
    launch(name, {grid_columns, grid_rows}, {count}, dynamic_shared, std::move(bytes), schedule);
}

void Machine::launch(const std::string& name, Extent grid_size, Extent block_size, size_t dynamic_shared,
                     std::vector<uint8_t> parameter_bytes, Schedule schedule) {
    const auto found = module.kernels.find(name);
    if (found == module.kernels.end()) fail("no kernel " + name);
    kernel = &found->second;
    const unsigned count = block_size.x * block_size.y * block_size.z;
    if (kernel->maximum_threads == 0 || count > kernel->maximum_threads) fail(name + ": too many threads a block");
    if (count % 32 != 0) fail(name + ": not whole warps");
    parameters = std::move(parameter_bytes);
    grid = grid_size;
    block = block_size;
    threads.resize(count);
    registers.resize(static_cast<size_t>(count) * kernel->registers);
    std::mt19937 random(12345);
    for (place.z = 0; place.z < grid.z; ++place.z) {
        for (place.y = 0; place.y < grid.y; ++place.y) {
            for (place.x = 0; place.x < grid.x; ++place.x) {
                shared.assign(kernel->static_shared + dynamic_shared, 0xff);
                run_block(schedule, random);
            }
        }
    }
}

void Machine::run_block(Schedule schedule, std::mt19937& random) {
    // What a register holds before it is written: nothing that works by chance.
    std::fill(registers.begin(), registers.end(), 0xfff7fff7fff7fff7u);
    for (unsigned i = 0; i < threads.size(); ++i) {
        threads[i].registers = &registers[static_cast<size_t>(i) * kernel->registers];
        threads[i].program_counter = 0;
        threads[i].state = State::READY;
        threads[i].copies.assign(1, {});
    }
    std::vector<unsigned> warps(threads.size() / 32), lanes(32);
    for (unsigned i = 0; i < warps.size(); ++i) warps[i] = schedule == Schedule::BACKWARD ? warps.size() - 1 - i : i;
    for (unsigned i = 0; i < 32; ++i) lanes[i] = schedule == Schedule::BACKWARD ? 31 - i : i;
    while (true) {
        if (schedule == Schedule::SHUFFLED) std::shuffle(warps.begin(), warps.end(), random);
        bool moved = false;
        for (unsigned warp : warps) {
            // As far ahead of the others as barriers let it, or some way.
            unsigned turns = schedule == Schedule::SHUFFLED ? 1 + random() % 64 : ~0u;
            bool ready = true;
            while (ready && turns-- > 0) {
                if (schedule == Schedule::SHUFFLED) std::shuffle(lanes.begin(), lanes.end(), random);
                bool together = true;
                ready = false;
                for (unsigned lane : lanes) {
                    if (threads[warp * 32 + lane].state == State::READY) {
                        run_thread(warp * 32 + lane);
                        moved = true;
                    }
                    together &= threads[warp * 32 + lane].state == State::WARP;
                }
                if (together) {
                    collective(warp);
                    ready = moved = true;
                }
            }
        }
        unsigned done = 0, waiting = 0;
        for (const Thread& thread : threads) {
            done += thread.state == State::DONE;
            waiting += thread.state == State::BARRIER;
        }
        if (done == threads.size()) return;
        if (waiting == threads.size()) {
            for (Thread& thread : threads) thread.state = State::READY;
        } else if (!moved) {
            fail(kernel->name + ": threads wait at different barriers or instructions of a warp");
        }
    }
}

void Machine::run_thread(unsigned index) {
    Thread& thread = threads[index];
    while (thread.state == State::READY) {
        if (thread.program_counter >= kernel->code.size()) fail(kernel->name + ": ran past its end");
        const Instruction& instruction = kernel->code[thread.program_counter];
        if (++steps > MOST_STEPS) fail(kernel->name + ": does not end");
        if (instruction.guard != ~0u && (thread.registers[instruction.guard] != 0) == instruction.guard_negated) {
            if (is_collective(instruction.op)) fail("a guarded warp instruction: " + instruction.text);
            ++thread.program_counter;
            continue;
        }
        if (is_collective(instruction.op)) {
            thread.state = State::WARP;
            return;
        }
        if (step(index, instruction)) ++thread.program_counter;
    }
}

uint64_t Machine::read(unsigned index, const Operand& operand) const {
    switch (operand.kind) {
        case Operand::REGISTER: return threads[index].registers[operand.index];
        case Operand::IMMEDIATE: case Operand::SHARED_SYMBOL: return operand.value;
        case Operand::PARAMETER: return operand.index;
        case Operand::SPECIAL:
            switch (operand.index) {
                case TID_X: return index % block.x;
                case TID_Y: return index / block.x % block.y;
                case TID_Z: return index / (block.x * block.y);
                case NTID_X: return block.x;
                case NTID_Y: return block.y;
                case NTID_Z: return block.z;
                case CTAID_X: return place.x;
                case CTAID_Y: return place.y;
                case CTAID_Z: return place.z;
                case NCTAID_X: return grid.x;
                case NCTAID_Y: return grid.y;
                case NCTAID_Z: return grid.z;
                case LANE: return index % 32;
                default: fail("a special register that has no meaning here");
            }
        default: fail("an operand that is no value");
    }
}

void Machine::write(Thread& thread, const Operand& operand, uint64_t value) {
    if (operand.kind == Operand::NOTHING) return;
    if (operand.kind != Operand::REGISTER) fail("a result that is no register");
    thread.registers[operand.index] = value;
}

uint8_t* Machine::global(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction) {
    if (address % alignment != 0) fail(kernel->name + ": misaligned: " + instruction.text);
    for (const Region& region : regions) {
        if (address >= region.start && address - region.start + bytes <= region.bytes)
            return region.host + (address - region.start);
    }
    fail(kernel->name + ": out of bounds of global memory: " + instruction.text + (describe ? ": " + describe(address) : ""));
}

uint8_t* Machine::in_shared(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction) {
    if (address % alignment != 0) fail(kernel->name + ": misaligned: " + instruction.text);
    if (address > shared.size() || address + bytes > shared.size())
        fail(kernel->name + ": out of bounds of shared memory: " + instruction.text);
    return &shared[address];
}

uint8_t* Machine::memory(Space space, uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction) {
    if (space == Space::SHARED) return in_shared(static_cast<uint32_t>(address), bytes, alignment, instruction);
    if (space == Space::PARAM) {
        if (address + bytes > parameters.size()) fail("out of bounds of the parameters: " + instruction.text);
        return &parameters[address];
    }
    if (space == Space::GENERIC && address >= SHARED_WINDOW) return in_shared(address - SHARED_WINDOW, bytes, alignment, instruction);
    return global(address, bytes, alignment, instruction);
}

// One instruction of one thread. False where it has set the next one itself.
bool Machine::step(unsigned index, const Instruction& instruction) {
    Thread& thread = threads[index];
    const auto& operands = instruction.operands;
    const size_t bytes = instruction.type.bytes;
    switch (instruction.op) {
        case Op::BRA: thread.program_counter = operands[0].index; return false;
        case Op::RET:
            thread.state = State::DONE;
            return false;
        case Op::BAR: thread.state = State::BARRIER; return true;
        case Op::FENCE: return true;
        case Op::LD: {
            const uint64_t address = read(index, operands[1]) + operands[1].offset;
            const uint8_t* from = memory(instruction.space, address, bytes * instruction.width, bytes * instruction.width, instruction);
            for (unsigned i = 0; i < instruction.width; ++i) {
                uint64_t value = 0;
                std::memcpy(&value, from + i * bytes, bytes);
                if (instruction.type.kind == Type::SIGNED && bytes < 8 && (value >> (8 * bytes - 1) & 1)) value |= ~uint64_t{0} << 8 * bytes;
                write(thread, instruction.width > 1 ? operands[0].parts[i] : operands[0], value);
            }
            return true;
        }
        case Op::ST: {
            const uint64_t address = read(index, operands[0]) + operands[0].offset;
            uint8_t* to = memory(instruction.space, address, bytes * instruction.width, bytes * instruction.width, instruction);
            for (unsigned i = 0; i < instruction.width; ++i) {
                const uint64_t value = read(index, instruction.width > 1 ? operands[1].parts[i] : operands[1]);
                std::memcpy(to + i * bytes, &value, bytes);
            }
            return true;
        }
        case Op::ATOM: {
            const bool returns = instruction.text.find("red.") == std::string::npos;
            const Operand& where = operands[returns];
            uint8_t* at = memory(instruction.space, read(index, where) + where.offset, bytes, bytes, instruction);
            uint64_t old = 0, value = read(index, operands[returns + 1]);
            std::memcpy(&old, at, bytes);
            if (instruction.type.kind != Type::UNSIGNED && instruction.type.kind != Type::BITS &&
                !(instruction.type.kind == Type::SIGNED && instruction.choice == ATOMIC_ADD))
                fail("an atomic operation that is not of unsigned integers: " + instruction.text);
            if (bytes == 4) value = static_cast<uint32_t>(value);
            switch (instruction.choice) {
                case ATOMIC_ADD: value += old; break;
                case ATOMIC_MIN: value = std::min(value, old); break;
                case ATOMIC_MAX: value = std::max(value, old); break;
                case ATOMIC_OR: value |= old; break;
                default: break;
            }
            std::memcpy(at, &value, bytes);
            if (returns) write(thread, operands[0], old);
            return true;
        }
        case Op::MOV: {
            const bool packs = operands[1].kind == Operand::VECTOR, unpacks = operands[0].kind == Operand::VECTOR;
            if (packs) {
                const unsigned width = 8 * bytes / operands[1].parts.size();
                uint64_t value = 0;
                for (size_t i = 0; i < operands[1].parts.size(); ++i)
                    value |= (read(index, operands[1].parts[i]) & (~uint64_t{0} >> (64 - width))) << width * i;
                write(thread, operands[0], value);
            } else if (unpacks) {
                const unsigned width = 8 * bytes / operands[0].parts.size();
                const uint64_t value = read(index, operands[1]);
                for (size_t i = 0; i < operands[0].parts.size(); ++i)
                    write(thread, operands[0].parts[i], value >> width * i & (~uint64_t{0} >> (64 - width)));
            } else {
                write(thread, operands[0], read(index, operands[1]));
            }
            return true;
        }
        case Op::CVTA: {
            const bool shared_space = instruction.space == Space::SHARED;
            const uint64_t value = read(index, operands[1]);
            write(thread, operands[0], !shared_space ? value : instruction.to ? value - SHARED_WINDOW : value + SHARED_WINDOW);
            return true;
        }
        case Op::CP_ASYNC: {
            const uint32_t size = read(index, operands[2]);
            const uint32_t source = operands.size() > 3 ? static_cast<uint32_t>(read(index, operands[3])) : size;
            if (source > size) fail("a copy from more than its size: " + instruction.text);
            const uint32_t to = read(index, operands[0]) + operands[0].offset;
            const uint64_t from = read(index, operands[1]) + operands[1].offset;
            std::memset(in_shared(to, size, size, instruction), 0xff, size);
            thread.copies.back().push_back({to, source > 0 ? global(from, source, size, instruction) : nullptr, size, source});
            return true;
        }
        case Op::CP_ASYNC_COMMIT: thread.copies.emplace_back(); return true;
        case Op::CP_ASYNC_WAIT: {
            const bool all = instruction.text.find("wait_all") != std::string::npos;
            if (all) thread.copies.emplace_back();
            while (thread.copies.size() - 1 > (all ? 0u : instruction.choice)) {
                for (const Copy& copy : thread.copies.front()) {
                    std::memset(&shared[copy.to], 0, copy.bytes);
                    if (copy.source_bytes > 0) std::memcpy(&shared[copy.to], copy.from, copy.source_bytes);
                }
                thread.copies.erase(thread.copies.begin());
            }
            return true;
        }
        default: write(thread, operands[0], arithmetic(index, instruction)); return true;
    }
}

void Machine::collective(unsigned warp) {
    const uint32_t at = threads[warp * 32].program_counter;
    for (unsigned lane = 1; lane < 32; ++lane) {
        if (threads[warp * 32 + lane].program_counter != at) fail(kernel->name + ": lanes of a warp at different instructions");
    }
    const Instruction& instruction = kernel->code[at];
    switch (instruction.op) {
        case Op::WARP_SYNC: break;
        case Op::MMA: product(warp, instruction); break;
        case Op::LDMATRIX: load_matrices(warp, instruction); break;
        default:
            if (static_cast<uint32_t>(read(warp * 32, instruction.operands.back())) != ~0u) fail("not all lanes take part: " + instruction.text);
            shuffle(warp, instruction, ~0u);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        ++threads[warp * 32 + lane].program_counter;
        threads[warp * 32 + lane].state = State::READY;
    }
}

void Machine::shuffle(unsigned warp, const Instruction& instruction, uint32_t mask) {
    const auto& operands = instruction.operands;
    if (instruction.op == Op::VOTE) {
        uint32_t ballot = 0;
        for (unsigned lane = 0; lane < 32; ++lane) ballot |= static_cast<uint32_t>(read(warp * 32 + lane, operands[1]) != 0) << lane;
        const uint32_t result = instruction.choice == 0 ? ballot : instruction.choice == 1 ? ballot != 0 : ballot == mask;
        for (unsigned lane = 0; lane < 32; ++lane) write(threads[warp * 32 + lane], operands[0], result);
        return;
    }
    uint64_t values[32];
    int source[32];
    bool inside[32];
    for (int lane = 0; lane < 32; ++lane) {
        values[lane] = static_cast<uint32_t>(read(warp * 32 + lane, operands[1]));
        const int b = read(warp * 32 + lane, operands[2]) & 31;
        const int c = read(warp * 32 + lane, operands[3]);
        const int clamp = c & 31, segment = c >> 8 & 31;
        const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
        int from = lane;
        switch (instruction.choice) {
            case UP: from = lane - b; inside[lane] = from >= most; break;
            case DOWN: from = lane + b; inside[lane] = from <= most; break;
            case BUTTERFLY: from = lane ^ b; inside[lane] = from <= most; break;
            default: from = least | (b & ~segment); inside[lane] = from <= most; break;
        }
        source[lane] = inside[lane] ? from : lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
        Thread& thread = threads[warp * 32 + lane];
        write(thread, operands[0], values[source[lane]]);
        if (operands[0].predicate != ~0u) thread.registers[operands[0].predicate] = inside[lane];
    }
}

// ldmatrix: lanes 8 m to 8 m + 7 give the rows of matrix m; lane l receives elements 2 (l % 4) and the next of
// row l / 4, or of the transposed matrix.
void Machine::load_matrices(unsigned warp, const Instruction& instruction) {
    const auto& operands = instruction.operands;
    for (unsigned matrix = 0; matrix < instruction.width; ++matrix) {
        uint16_t rows[8][8];
        for (unsigned row = 0; row < 8; ++row) {
            const uint32_t address = read(warp * 32 + matrix * 8 + row, operands[1]) + operands[1].offset;
            std::memcpy(rows[row], in_shared(address, 16, 16, instruction), 16);
        }
        for (unsigned lane = 0; lane < 32; ++lane) {
            const unsigned row = lane / 4, column = lane % 4 * 2;
            const uint32_t low = instruction.trans ? rows[column][row] : rows[row][column];
            const uint32_t high = instruction.trans ? rows[column + 1][row] : rows[row][column + 1];
            write(threads[warp * 32 + lane], operands[0].kind == Operand::VECTOR ? operands[0].parts[matrix] : operands[0], low | high << 16);
        }
    }
}

// mma.m16n8k16, bf16 to f32, with the fragments of the PTX ISA. Products are exact in f32; they are added one after
// the other in f32, which is worse than what tensor cores do.
void Machine::product(unsigned warp, const Instruction& instruction) {
    const auto& d = instruction.operands[0].parts;
    const auto& a = instruction.operands[1].parts;
    const auto& b = instruction.operands[2].parts;
    const auto& c = instruction.operands[3].parts;
    float left[16][16], right[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned index = warp * 32 + lane, quad = lane / 4, pair = lane % 4 * 2;
        for (unsigned part = 0; part < 4; ++part) {
            const uint32_t bits = read(index, a[part]);
            const unsigned row = quad + part % 2 * 8, depth = pair + part / 2 * 8;
            left[row][depth] = as_float(bits << 16);
            left[row][depth + 1] = as_float(bits & 0xffff0000u);
        }
        for (unsigned part = 0; part < 2; ++part) {
            const uint32_t bits = read(index, b[part]);
            right[pair + part * 8][quad] = as_float(bits << 16);
            right[pair + part * 8 + 1][quad] = as_float(bits & 0xffff0000u);
        }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned index = warp * 32 + lane;
        for (unsigned part = 0; part < 4; ++part) {
            const unsigned row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
            float sum = as_float(read(index, c[part]));
            for (unsigned depth = 0; depth < 16; ++depth) sum += left[row][depth] * right[depth][column];
            write(threads[index], d[part], bits_of(sum));
        }
    }
}

}  // namespace ptx
