// The interface of tests/kernels/ptx/machine.hpp over kernels that a C++ compiler compiled (kernels/host), so that the same
// tests run on both.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../../kernels/host/engine.hpp"

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

using Arguments = std::vector<Argument>;
using Kernels = std::map<std::string, std::function<void(const Arguments&)>>;

// Defined beside the kernels of each test: run.py writes it.
const Kernels& kernels();

template <typename T>
T argument(const Argument& from) {
    if (from.bytes != sizeof(T)) host::fail("an argument of " + std::to_string(from.bytes) + " bytes for one of " + std::to_string(sizeof(T)));
    T value;
    std::memcpy(&value, &from.bits, sizeof value);
    return value;
}

template <typename... Types, size_t... Indices>
void call(void (*kernel)(Types...), const Arguments& arguments, std::index_sequence<Indices...>) {
    if (arguments.size() != sizeof...(Types)) host::fail("another number of arguments");
    kernel(argument<Types>(arguments[Indices])...);
}

template <typename... Types>
std::function<void(const Arguments&)> callable(void (*kernel)(Types...)) {
    return [kernel](const Arguments& arguments) { call(kernel, arguments, std::index_sequence_for<Types...>()); };
}

struct Module {
    static Module load(const std::string&) { return {}; }
};

class Machine {
public:
    explicit Machine(const Module&) {}
    // AddressSanitizer knows what may be accessed.
    void allow(const void*, size_t) {}
    void forget() {}

    void launch(const std::string& kernel, unsigned grid_x, unsigned grid_y, unsigned threads, size_t dynamic_shared, const Arguments& arguments,
                Schedule schedule) {
        const auto found = kernels().find(kernel);
        if (found == kernels().end()) host::fail("no kernel " + kernel);
        const host::Schedule order = schedule == Schedule::BACKWARD ? host::Schedule::BACKWARD
                                     : schedule == Schedule::SHUFFLED ? host::Schedule::SHUFFLED : host::Schedule::FORWARD;
        host::launch({grid_x, grid_y, 1}, threads, dynamic_shared, order, [&] { found->second(arguments); });
    }

    uint64_t steps = 0;  // not counted here
};

}  // namespace ptx
