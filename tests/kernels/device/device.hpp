// An emulated CUDA device: memory, streams and what is queued on them. driver.cpp makes the driver API of it, and
// cublas.cpp a cuBLAS.
//
// Work is queued and runs at the latest moment that CUDA allows: when the host waits for it. Streams are ordered by
// events alone (and, blocking ones, by the null stream). New memory holds NaN bits; addresses are never used twice
// and are no addresses of the process. So what a program forgot to order, copy or keep shows in every run.
//
// Source: NVIDIA, CUDA Driver API, "API synchronization behavior" and "Stream synchronization behavior".
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define SHARED __attribute__((visibility("default")))

namespace device {

// CUresult
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
};

// A program's mistake that a device would answer with a fault or a wrong result: says so and ends the process.
[[noreturn]] SHARED void fault(const std::string& message);

// Held by every entry point.
SHARED std::recursive_mutex& lock();

class Memory {
public:
    // An address for so many bytes, or 0 where the device has not so many left.
    uint64_t reserve(size_t bytes);
    // From here on it can be accessed.
    void begin(uint64_t address);
    void end(uint64_t address);
    bool reserved(uint64_t address) const;
    bool contains(uint64_t address) const;
    // Where the process finds bytes of the device; a fault where they are not all of one living allocation.
    uint8_t* at(uint64_t address, size_t bytes, const std::string& what);
    // What an address is, for a message.
    std::string describe(uint64_t address) const;
    size_t used() const { return in_use; }

    enum class State : uint8_t { RESERVED, ALIVE, FREED };
    struct Block {
        size_t bytes;
        State state;
        uint8_t* host;
    };
    std::map<uint64_t, Block> living() const;

private:
    std::map<uint64_t, Block> blocks;
    size_t in_use = 0;
};

// Page-locked memory of the host: asynchronous copies from and to it are done later, all others at once.
class Pinned {
public:
    void add(void* start, size_t bytes) { ranges[reinterpret_cast<uint64_t>(start)] = bytes; }
    bool remove(void* start) { return ranges.erase(reinterpret_cast<uint64_t>(start)) == 1; }
    bool starts_at(void* start) const { return ranges.count(reinterpret_cast<uint64_t>(start)) == 1; }
    bool holds(const void* start, size_t bytes) const;

private:
    std::map<uint64_t, size_t> ranges;
};

struct Stream;

// When so many operations of a stream are done.
struct Point {
    std::shared_ptr<Stream> stream;
    uint64_t count = 0;
};

struct Operation {
    std::string name;
    std::function<void()> run;
    std::vector<Point> after;
};

// What a capture records, in the order of the calls.
struct Graph {
    std::vector<Operation> operations;
    int mode = 0;  // 0: global, 1: of the thread, 2: relaxed
    std::thread::id thread;
    Stream* origin = nullptr;
};

struct Device;

struct Stream {
    Device* device;
    bool blocking;  // ordered with the null stream
    std::deque<Operation> queue;
    uint64_t submitted = 0, completed = 0;
    std::shared_ptr<Graph> capture;
};

struct Event {
    Device* device;
    bool timed;
    Point point;  // no stream: never recorded
    std::shared_ptr<double> time;
    std::shared_ptr<Graph> captured;
};

struct Device {
    int ordinal;
    Memory memory;
    std::shared_ptr<Stream> null_stream, thread_stream;
    std::vector<std::shared_ptr<Stream>> streams;  // all, with those two
    int retained = 0;
};

// From the environment: EMULATED_DEVICES (1), EMULATED_CAPABILITY (80), EMULATED_MEMORY (bytes, 8 GiB),
// EMULATED_ORDER (late, early, others), EMULATED_SCHEDULE (together, forward, backward, shuffled: machine.hpp), EMULATED_TRACE (unset).
struct Settings {
    enum class Order { LATE, EARLY, OTHERS };
    int devices, capability;
    size_t memory;
    Order order;  // late: when waited for; early: at the call; others: when waited for, after all other streams
    std::string schedule;
    bool trace;
    static const Settings& get();
};

SHARED Device* current();
// The stream that a handle means, or none where it is not one of the current device.
SHARED std::shared_ptr<Stream> stream_of(void* handle);
// Queues an operation, or records it where the stream is captured.
SHARED Result submit(const std::shared_ptr<Stream>& stream, const std::string& name, std::function<void()> run, std::vector<Point> after = {});
// Of the device that `device` names.
SHARED uint8_t* memory_at(Device* device, uint64_t address, size_t bytes, const std::string& what);

void run_until(const Point& point);
void wait_for(const Point& point);
void wait_for_all(Device& device);

}  // namespace device
