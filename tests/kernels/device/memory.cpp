#include "device.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace device {

namespace {

// No address of the process has these bits: neither side can follow the other's pointers by chance.
constexpr uint64_t FIRST_ADDRESS = uint64_t{1} << 50;
// As the driver's allocations are aligned, and so that the end of one is far from the next.
constexpr uint64_t ALIGNMENT = 512, GAP = 1 << 20;

std::string hexadecimal(uint64_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

}  // namespace

void fault(const std::string& message) {
    std::fprintf(stderr, "emulated device: %s\n", message.c_str());
    std::fflush(nullptr);
    std::abort();
}

uint64_t Memory::reserve(size_t bytes) {
    static std::atomic<uint64_t> next{FIRST_ADDRESS};
    if (bytes > Settings::get().memory - in_use) return 0;
    in_use += bytes;
    const uint64_t address = next.fetch_add((bytes + GAP + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    blocks[address] = {bytes, State::RESERVED, nullptr};
    return address;
}

void Memory::begin(uint64_t address) {
    Block& block = blocks.at(address);
    // A graph that is launched again allocates again what it has not freed.
    if (block.state == State::ALIVE) return;
    if (block.state == State::FREED) in_use += block.bytes;
    block.host = static_cast<uint8_t*>(std::aligned_alloc(ALIGNMENT, (block.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT));
    if (block.host == nullptr) fault("no memory left on the host");
    std::memset(block.host, 0xff, block.bytes);
    block.state = State::ALIVE;
}

void Memory::end(uint64_t address) {
    const auto found = blocks.find(address);
    if (found == blocks.end()) fault("free of " + hexadecimal(address) + ", which was never allocated");
    Block& block = found->second;
    if (block.state != State::ALIVE) fault("free of " + hexadecimal(address) + ": " + describe(address));
    std::free(block.host);
    block.host = nullptr;
    block.state = State::FREED;
    in_use -= block.bytes;
}

bool Memory::reserved(uint64_t address) const {
    const auto found = blocks.find(address);
    return found != blocks.end() && found->second.state != State::FREED;
}

bool Memory::contains(uint64_t address) const {
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return false;
    --after;
    return address - after->first < after->second.bytes;
}

uint8_t* Memory::at(uint64_t address, size_t bytes, const std::string& what) {
    auto after = blocks.upper_bound(address);
    if (after != blocks.begin()) {
        --after;
        const Block& block = after->second;
        const uint64_t offset = address - after->first;
        if (block.state == State::ALIVE && offset <= block.bytes && bytes <= block.bytes - offset) return block.host + offset;
    }
    fault(what + ": " + std::to_string(bytes) + " bytes at " + hexadecimal(address) + ": " + describe(address));
}

std::string Memory::describe(uint64_t address) const {
    if (address < FIRST_ADDRESS) return "an address of the host";
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return "never allocated on this device";
    --after;
    const uint64_t offset = address - after->first;
    const Block& block = after->second;
    std::string text = "byte " + std::to_string(offset) + " of an allocation of " + std::to_string(block.bytes) + " bytes";
    if (offset >= block.bytes + GAP) return "never allocated on this device";
    if (block.state == State::FREED) text += " that was freed";
    if (block.state == State::RESERVED) text += " that nothing orders before this";
    return text;
}

std::map<uint64_t, Memory::Block> Memory::living() const {
    std::map<uint64_t, Block> found;
    for (const auto& [address, block] : blocks) {
        if (block.state == State::ALIVE) found.emplace_hint(found.end(), address, block);
    }
    return found;
}

bool Pinned::holds(const void* start, size_t bytes) const {
    const uint64_t address = reinterpret_cast<uint64_t>(start);
    auto after = ranges.upper_bound(address);
    if (after == ranges.begin()) return false;
    --after;
    return address - after->first + bytes <= after->second;
}

uint8_t* memory_at(Device* device, uint64_t address, size_t bytes, const std::string& what) {
    return device->memory.at(address, bytes, what);
}

}  // namespace device
