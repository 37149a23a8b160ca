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

uint64_t loaded(const uint8_t* from, size_t bytes) {
    auto as = [&](auto value) {
        std::memcpy(&value, from, sizeof value);
        return uint64_t{value};
    };
    return bytes == 4 ? as(uint32_t{}) : bytes == 2 ? as(uint16_t{}) : bytes == 8 ? as(uint64_t{}) : as(uint8_t{});
}

void store(uint8_t* to, uint64_t value, size_t bytes) {
    auto as = [&](auto part) { std::memcpy(to, &part, sizeof part); };
    if (bytes == 4) as(static_cast<uint32_t>(value));
    else if (bytes == 2) as(static_cast<uint16_t>(value));
    else if (bytes == 8) as(value);
    else as(static_cast<uint8_t>(value));
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
    region_of.assign(kernel->code.size(), 0);
    std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.start < b.start; });
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
    for (Thread& thread : threads) {
        thread.program_counter = 0;
        thread.state = State::READY;
        thread.copies.assign(1, {});
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
                        if (schedule == Schedule::TOGETHER) run_together(warp);
                        else run_lanes(warp, 1u << lane, ~0u);
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

// Until no lane of the warp is ready.
void Machine::run_together(unsigned warp) {
    const Thread* const lanes = &threads[warp * WARP_SIZE];
    while (true) {
        // Those that are furthest behind, up to where the next ones are.
        uint32_t least = ~0u, next = ~0u, behind = 0;
        for (unsigned lane = 0; lane < WARP_SIZE; ++lane) {
            if (lanes[lane].state != State::READY) continue;
            const uint32_t at = lanes[lane].program_counter;
            if (at < least) next = least, least = at, behind = 0;
            else if (at > least && at < next) next = at;
            behind |= static_cast<uint32_t>(at == least) << lane;
        }
        if (behind == 0) return;
        run_lanes(warp, behind, next);
    }
}

// Runs lanes of a warp that are at the same instruction until they part, wait, or come to `meeting`.
void Machine::run_lanes(unsigned warp, uint32_t lanes, uint32_t meeting) {
    Thread* const of_warp = &threads[warp * WARP_SIZE];
    uint32_t at = of_warp[__builtin_ctz(lanes)].program_counter;
    unsigned running = __builtin_popcount(lanes);
    const Instruction* const code = kernel->code.data();
    const size_t length = kernel->code.size();
    auto leave = [&](uint32_t which, uint32_t where, State state) {
        each(which, [&](unsigned lane) { of_warp[lane].program_counter = where, of_warp[lane].state = state; });
    };
    while (at < meeting) {
        if (at >= length) fail(kernel->name + ": ran past its end");
        const Instruction& instruction = code[at];
        steps += running;
        if (steps > MOST_STEPS) fail(kernel->name + ": does not end");
        uint32_t active = lanes;
        if (instruction.guard != ~0u) {
            const uint64_t* guard = lanes_of(warp, instruction.guard);
            uint32_t holds = 0;
            each(lanes, [&](unsigned lane) { holds |= static_cast<uint32_t>((guard[lane] != 0) != instruction.guard_negated) << lane; });
            active = holds;
        }
        if (is_collective(instruction.op)) {
            if (active != lanes) fail("a guarded warp instruction: " + instruction.text);
            return leave(lanes, at, State::WARP);
        }
        if (instruction.op == Op::BRA && active != 0) {
            const uint32_t target = instruction.operands[0].index;
            if (active != lanes) {
                leave(active, target, State::READY);
                return leave(lanes & ~active, at + 1, State::READY);
            }
            at = target;
            continue;
        }
        ++at;
        if (active == 0) continue;
        if (instruction.op == Op::RET || instruction.op == Op::BAR) {
            leave(active, at, instruction.op == Op::RET ? State::DONE : State::BARRIER);
            lanes &= ~active;
            running = __builtin_popcount(lanes);
            if (lanes == 0) return;
        } else {
            step(warp, active, instruction);
        }
    }
    leave(lanes, at, State::READY);
}

// The values of an operand that is no register.
const uint64_t* Machine::filled(unsigned warp, uint32_t lanes, const Operand& operand, Lanes& scratch) {
    auto all = [&](uint64_t value) {
        each(lanes, [&](unsigned lane) { scratch[lane] = value; });
        return scratch;
    };
    auto by_thread = [&](auto value) {
        each(lanes, [&](unsigned lane) { scratch[lane] = value(warp * WARP_SIZE + lane); });
        return scratch;
    };
    switch (operand.kind) {
        case Operand::IMMEDIATE: case Operand::SHARED_SYMBOL: return all(operand.value);
        case Operand::PARAMETER: return all(operand.index);
        case Operand::SPECIAL:
            switch (operand.index) {
                case TID_X: return by_thread([&](unsigned index) { return index % block.x; });
                case TID_Y: return by_thread([&](unsigned index) { return index / block.x % block.y; });
                case TID_Z: return by_thread([&](unsigned index) { return index / (block.x * block.y); });
                case LANE: return by_thread([&](unsigned index) { return index % WARP_SIZE; });
                case NTID_X: return all(block.x);
                case NTID_Y: return all(block.y);
                case NTID_Z: return all(block.z);
                case CTAID_X: return all(place.x);
                case CTAID_Y: return all(place.y);
                case CTAID_Z: return all(place.z);
                case NCTAID_X: return all(grid.x);
                case NCTAID_Y: return all(grid.y);
                case NCTAID_Z: return all(grid.z);
                default: fail("a special register that has no meaning here");
            }
        default: fail("an operand that is no value");
    }
}

uint8_t* Machine::global(uint64_t address, size_t bytes, size_t alignment, const Instruction& instruction) {
    if (address % alignment != 0) fail(kernel->name + ": misaligned: " + instruction.text);
    uint32_t& last = region_of[&instruction - kernel->code.data()];
    auto inside = [&](uint32_t index) {
        return index < regions.size() && address >= regions[index].start && address - regions[index].start + bytes <= regions[index].bytes;
    };
    if (!inside(last)) {
        const auto after = std::upper_bound(regions.begin(), regions.end(), address, [](uint64_t value, const Region& region) { return value < region.start; });
        last = static_cast<uint32_t>(after - regions.begin()) - 1;
    }
    if (inside(last)) return regions[last].host + (address - regions[last].start);
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

// One instruction of some lanes.
void Machine::step(unsigned warp, uint32_t lanes, const Instruction& instruction) {
    const auto& operands = instruction.operands;
    const size_t bytes = instruction.type.bytes;
    Lanes scratch[4];
    auto operand_or_part = [&](const Operand& operand, unsigned i) -> const Operand& { return operand.kind == Operand::VECTOR ? operand.parts[i] : operand; };
    switch (instruction.op) {
        case Op::FENCE: return;
        case Op::LD: {
            const uint64_t* addresses = read(warp, lanes, operands[1], scratch[0]);
            const size_t all = bytes * instruction.width;
            const unsigned unused = instruction.type.kind == Type::SIGNED ? 64 - 8 * bytes : 0;
            uint64_t* to[4];
            for (unsigned i = 0; i < instruction.width; ++i) to[i] = written(warp, operand_or_part(operands[0], i));
            each(lanes, [&](unsigned lane) {
                const uint8_t* from = memory(instruction.space, addresses[lane] + operands[1].offset, all, all, instruction);
                for (unsigned i = 0; i < instruction.width; ++i) {
                    const uint64_t value = loaded(from + i * bytes, bytes);
                    to[i][lane] = unused == 0 ? value : static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
                }
            });
            return;
        }
        case Op::ST: {
            const uint64_t* addresses = read(warp, lanes, operands[0], scratch[0]);
            const size_t all = bytes * instruction.width;
            const uint64_t* from[4];
            Lanes values[4];
            for (unsigned i = 0; i < instruction.width; ++i) from[i] = read(warp, lanes, operand_or_part(operands[1], i), values[i]);
            each(lanes, [&](unsigned lane) {
                uint8_t* to = memory(instruction.space, addresses[lane] + operands[0].offset, all, all, instruction);
                for (unsigned i = 0; i < instruction.width; ++i) store(to + i * bytes, from[i][lane], bytes);
            });
            return;
        }
        case Op::ATOM: {
            // Without a result: red, or an unused one.
            const bool returns = !operands[0].memory;
            const Operand& where = operands[returns];
            const uint64_t* addresses = read(warp, lanes, where, scratch[0]);
            const uint64_t* values = read(warp, lanes, operands[returns + 1], scratch[1]);
            if (instruction.type.kind != Type::UNSIGNED && instruction.type.kind != Type::BITS &&
                !(instruction.type.kind == Type::SIGNED && instruction.choice == ATOMIC_ADD))
                fail("an atomic operation that is not of unsigned integers: " + instruction.text);
            uint64_t* results = returns ? written(warp, operands[0]) : nullptr;
            each(lanes, [&](unsigned lane) {
                uint8_t* at = memory(instruction.space, addresses[lane] + where.offset, bytes, bytes, instruction);
                const uint64_t old = loaded(at, bytes);
                uint64_t value = values[lane];
                if (bytes == 4) value = static_cast<uint32_t>(value);
                switch (instruction.choice) {
                    case ATOMIC_ADD: value += old; break;
                    case ATOMIC_MIN: value = std::min(value, old); break;
                    case ATOMIC_MAX: value = std::max(value, old); break;
                    case ATOMIC_OR: value |= old; break;
                    default: break;
                }
                store(at, value, bytes);
                if (returns) results[lane] = old;
            });
            return;
        }
        case Op::MOV: {
            const bool packs = operands[1].kind == Operand::VECTOR, unpacks = operands[0].kind == Operand::VECTOR;
            if (!packs && !unpacks) {
                const uint64_t* from = read(warp, lanes, operands[1], scratch[0]);
                uint64_t* to = written(warp, operands[0]);
                return each(lanes, [&](unsigned lane) { to[lane] = from[lane]; });
            }
            const auto& parts = operands[unpacks ? 0 : 1].parts;
            const unsigned width = 8 * bytes / parts.size();
            const uint64_t mask = ~uint64_t{0} >> (64 - width);
            Lanes whole;
            if (packs) {
                each(lanes, [&](unsigned lane) { whole[lane] = 0; });
                for (size_t i = 0; i < parts.size(); ++i) {
                    const uint64_t* from = read(warp, lanes, parts[i], scratch[0]);
                    each(lanes, [&](unsigned lane) { whole[lane] |= (from[lane] & mask) << width * i; });
                }
                uint64_t* to = written(warp, operands[0]);
                each(lanes, [&](unsigned lane) { to[lane] = whole[lane]; });
            } else {
                const uint64_t* from = read(warp, lanes, operands[1], scratch[0]);
                each(lanes, [&](unsigned lane) { whole[lane] = from[lane]; });
                for (size_t i = 0; i < parts.size(); ++i) {
                    uint64_t* to = written(warp, parts[i]);
                    each(lanes, [&](unsigned lane) { to[lane] = whole[lane] >> width * i & mask; });
                }
            }
            return;
        }
        case Op::CVTA: {
            const uint64_t window = instruction.space != Space::SHARED ? 0 : instruction.to ? 0 - SHARED_WINDOW : SHARED_WINDOW;
            const uint64_t* from = read(warp, lanes, operands[1], scratch[0]);
            uint64_t* to = written(warp, operands[0]);
            return each(lanes, [&](unsigned lane) { to[lane] = from[lane] + window; });
        }
        case Op::CP_ASYNC: {
            const uint64_t* to = read(warp, lanes, operands[0], scratch[0]);
            const uint64_t* from = read(warp, lanes, operands[1], scratch[1]);
            const uint64_t* sizes = read(warp, lanes, operands[2], scratch[2]);
            const uint64_t* sources = operands.size() > 3 ? read(warp, lanes, operands[3], scratch[3]) : sizes;
            return each(lanes, [&](unsigned lane) {
                const uint32_t size = sizes[lane], source = sources[lane], target = to[lane] + operands[0].offset;
                if (source > size) fail("a copy from more than its size: " + instruction.text);
                std::memset(in_shared(target, size, size, instruction), 0xff, size);
                const uint8_t* at = source > 0 ? global(from[lane] + operands[1].offset, source, size, instruction) : nullptr;
                threads[warp * WARP_SIZE + lane].copies.back().push_back({target, at, size, source});
            });
        }
        case Op::CP_ASYNC_COMMIT: return each(lanes, [&](unsigned lane) { threads[warp * WARP_SIZE + lane].copies.emplace_back(); });
        case Op::CP_ASYNC_WAIT:
            return each(lanes, [&](unsigned lane) {
                auto& copies = threads[warp * WARP_SIZE + lane].copies;
                if (instruction.all) copies.emplace_back();
                while (copies.size() - 1 > (instruction.all ? 0u : instruction.choice)) {
                    for (const Copy& copy : copies.front()) {
                        std::memset(&shared[copy.to], 0, copy.bytes);
                        if (copy.source_bytes > 0) std::memcpy(&shared[copy.to], copy.from, copy.source_bytes);
                    }
                    copies.erase(copies.begin());
                }
            });
        default: calculate(warp, lanes, instruction);
    }
}

void Machine::collective(unsigned warp) {
    const uint32_t at = threads[warp * 32].program_counter;
    for (unsigned lane = 1; lane < 32; ++lane) {
        if (threads[warp * 32 + lane].program_counter != at) fail(kernel->name + ": lanes of a warp at different instructions");
    }
    const Instruction& instruction = kernel->code[at];
    Lanes scratch;
    switch (instruction.op) {
        case Op::WARP_SYNC: break;
        case Op::MMA: product(warp, instruction); break;
        case Op::LDMATRIX: load_matrices(warp, instruction); break;
        default:
            if (static_cast<uint32_t>(read(warp, ALL_LANES, instruction.operands.back(), scratch)[0]) != ~0u) fail("not all lanes take part: " + instruction.text);
            shuffle(warp, instruction, ~0u);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        ++threads[warp * 32 + lane].program_counter;
        threads[warp * 32 + lane].state = State::READY;
    }
}

void Machine::shuffle(unsigned warp, const Instruction& instruction, uint32_t mask) {
    const auto& operands = instruction.operands;
    Lanes scratch[3];
    uint64_t* results = written(warp, operands[0]);
    if (instruction.op == Op::VOTE) {
        const uint64_t* votes = read(warp, ALL_LANES, operands[1], scratch[0]);
        uint32_t ballot = 0;
        for (unsigned lane = 0; lane < 32; ++lane) ballot |= static_cast<uint32_t>(votes[lane] != 0) << lane;
        const uint32_t result = instruction.choice == 0 ? ballot : instruction.choice == 1 ? ballot != 0 : ballot == mask;
        for (unsigned lane = 0; lane < 32; ++lane) results[lane] = result;
        return;
    }
    Lanes values;
    std::copy_n(read(warp, ALL_LANES, operands[1], scratch[0]), WARP_SIZE, values);
    const uint64_t* distances = read(warp, ALL_LANES, operands[2], scratch[1]);
    const uint64_t* bounds = read(warp, ALL_LANES, operands[3], scratch[2]);
    int source[32];
    bool inside[32];
    for (int lane = 0; lane < 32; ++lane) {
        const int b = distances[lane] & 31;
        const int c = bounds[lane];
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
    for (int lane = 0; lane < 32; ++lane) results[lane] = static_cast<uint32_t>(values[source[lane]]);
    if (operands[0].predicate == ~0u) return;
    uint64_t* predicate = lanes_of(warp, operands[0].predicate);
    for (int lane = 0; lane < 32; ++lane) predicate[lane] = inside[lane];
}

// ldmatrix: lanes 8 m to 8 m + 7 give the rows of matrix m; lane l receives elements 2 (l % 4) and the next of
// row l / 4, or of the transposed matrix.
void Machine::load_matrices(unsigned warp, const Instruction& instruction) {
    const auto& operands = instruction.operands;
    Lanes addresses, scratch;
    std::copy_n(read(warp, ALL_LANES, operands[1], scratch), WARP_SIZE, addresses);
    for (unsigned matrix = 0; matrix < instruction.width; ++matrix) {
        uint16_t rows[8][8];
        for (unsigned row = 0; row < 8; ++row) {
            const uint32_t address = addresses[matrix * 8 + row] + operands[1].offset;
            std::memcpy(rows[row], in_shared(address, 16, 16, instruction), 16);
        }
        uint64_t* to = written(warp, operands[0].kind == Operand::VECTOR ? operands[0].parts[matrix] : operands[0]);
        for (unsigned lane = 0; lane < 32; ++lane) {
            const unsigned row = lane / 4, column = lane % 4 * 2;
            const uint32_t low = instruction.trans ? rows[column][row] : rows[row][column];
            const uint32_t high = instruction.trans ? rows[column + 1][row] : rows[row][column + 1];
            to[lane] = low | high << 16;
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
    float left[16][16], right[16][8], sums[16][8];
    Lanes scratch;
    for (unsigned part = 0; part < 4; ++part) {
        const uint64_t* bits = read(warp, ALL_LANES, a[part], scratch);
        for (unsigned lane = 0; lane < 32; ++lane) {
            const unsigned row = lane / 4 + part % 2 * 8, depth = lane % 4 * 2 + part / 2 * 8;
            left[row][depth] = as_float(bits[lane] << 16);
            left[row][depth + 1] = as_float(bits[lane] & 0xffff0000u);
        }
    }
    for (unsigned part = 0; part < 2; ++part) {
        const uint64_t* bits = read(warp, ALL_LANES, b[part], scratch);
        for (unsigned lane = 0; lane < 32; ++lane) {
            const unsigned depth = lane % 4 * 2 + part * 8;
            right[depth][lane / 4] = as_float(bits[lane] << 16);
            right[depth + 1][lane / 4] = as_float(bits[lane] & 0xffff0000u);
        }
    }
    for (unsigned part = 0; part < 4; ++part) {
        const uint64_t* bits = read(warp, ALL_LANES, c[part], scratch);
        for (unsigned lane = 0; lane < 32; ++lane) sums[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2] = as_float(bits[lane]);
    }
    for (unsigned row = 0; row < 16; ++row) {
        for (unsigned depth = 0; depth < 16; ++depth) {
            for (unsigned column = 0; column < 8; ++column) sums[row][column] += left[row][depth] * right[depth][column];
        }
    }
    for (unsigned part = 0; part < 4; ++part) {
        uint64_t* to = written(warp, d[part]);
        for (unsigned lane = 0; lane < 32; ++lane) to[lane] = bits_of(sums[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2]);
    }
}

}  // namespace ptx
