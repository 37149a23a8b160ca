#include "device.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace device {

namespace {

size_t number(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

void run_one(Stream& stream) {
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    for (const Point& point : operation.after) run_until(point);
    const auto start = std::chrono::steady_clock::now();
    operation.run();
    ++stream.completed;
    if (Settings::get().trace) {
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        std::fprintf(stderr, "device %d, stream %p: %s, %.3f ms\n", stream.device->ordinal, static_cast<void*>(&stream),
                     operation.name.c_str(), took.count());
    }
}

}  // namespace

std::recursive_mutex& lock() {
    // Never destroyed: threads may still call while the process ends.
    static auto* mutex = new std::recursive_mutex;
    return *mutex;
}

const Settings& Settings::get() {
    static const Settings* settings = [] {
        auto* made = new Settings;
        made->devices = static_cast<int>(number("EMULATED_DEVICES", 1));
        made->capability = static_cast<int>(number("EMULATED_CAPABILITY", 80));
        made->memory = number("EMULATED_MEMORY", size_t{8} << 30);
        const char* order = std::getenv("EMULATED_ORDER");
        const std::string name = order == nullptr ? "late" : order;
        if (name != "late" && name != "early" && name != "others") fault("EMULATED_ORDER is late, early or others, not " + name);
        made->order = name == "early" ? Order::EARLY : name == "others" ? Order::OTHERS : Order::LATE;
        const char* schedule = std::getenv("EMULATED_SCHEDULE");
        made->schedule = schedule == nullptr ? "together" : schedule;
        if (made->schedule != "together" && made->schedule != "forward" && made->schedule != "backward" && made->schedule != "shuffled")
            fault("EMULATED_SCHEDULE is together, forward, backward or shuffled, not " + made->schedule);
        made->trace = std::getenv("EMULATED_TRACE") != nullptr;
        return made;
    }();
    return *settings;
}

Result submit(const std::shared_ptr<Stream>& stream, const std::string& name, std::function<void()> run, std::vector<Point> after) {
    if (stream->capture) {
        stream->capture->operations.push_back({name, std::move(run), {}});
        return SUCCESS;
    }
    Device& device = *stream->device;
    // The null stream waits for all blocking streams, and they for it.
    if (stream == device.null_stream) {
        for (const auto& other : device.streams) {
            if (other != stream && other->blocking && other->completed < other->submitted) after.push_back({other, other->submitted});
        }
    } else if (stream->blocking && device.null_stream->completed < device.null_stream->submitted) {
        after.push_back({device.null_stream, device.null_stream->submitted});
    }
    stream->queue.push_back({name, std::move(run), std::move(after)});
    ++stream->submitted;
    if (Settings::get().order == Settings::Order::EARLY) run_until({stream, stream->submitted});
    return SUCCESS;
}

// `completed` of a running operation is one behind its queue, so that what waits for it is seen to.
void run_until(const Point& point) {
    while (point.stream->completed < point.count) run_one(*point.stream);
}

void wait_for(const Point& point) {
    if (Settings::get().order == Settings::Order::OTHERS) {
        const auto streams = point.stream->device->streams;
        for (const auto& other : streams) {
            if (other != point.stream) run_until({other, other->submitted});
        }
    }
    run_until(point);
}

void wait_for_all(Device& device) {
    const auto streams = device.streams;
    for (const auto& stream : streams) run_until({stream, stream->submitted});
}

}  // namespace device
