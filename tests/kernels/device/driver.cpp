// The entry points of libcuda.so.1 that the emulated device has. Answers are those of the CUDA Driver API's pages.
// What a real driver cannot notice but would act on (an access out of bounds, a copy from memory that is gone)
// ends the process with a message.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "../ptx/machine.hpp"
#include "device.hpp"

#define ENTRY extern "C" SHARED int

namespace device {

namespace {

constexpr int MAX_THREADS = 1024;
constexpr int DEFAULT_SHARED = 48 << 10;

bool initialized = false;

Pinned& pinned() {
    static auto* memory = new Pinned;
    return *memory;
}

std::vector<Device*>& devices() {
    static auto* all = [] {
        auto* made = new std::vector<Device*>;
        for (int i = 0; i < Settings::get().devices; ++i) made->push_back(new Device{i, {}, nullptr, nullptr, {}, 0});
        return made;
    }();
    return *all;
}

Device* device_at(int ordinal) {
    return ordinal >= 0 && ordinal < static_cast<int>(devices().size()) ? devices()[ordinal] : nullptr;
}

// Bytes of shared memory a block can have, by programs' leave: CUDA C++ Programming Guide, "Technical Specifications".
int most_shared() { return (Settings::get().capability == 80 ? 163 : 227) << 10; }

// A context is its device: there are only primary ones.
thread_local Device* bound = nullptr;

void say(const std::string& message) { std::fprintf(stderr, "emulated device: %s\n", message.c_str()); }

struct Module {
    Module(ptx::Module parsed, Device* device) : code(std::move(parsed)), machine(code), device(device) {}
    const ptx::Module code;
    ptx::Machine machine;
    Device* device;
};

struct Function {
    std::shared_ptr<Module> module;
    const ptx::Kernel* kernel;
    int dynamic_shared;
};

// Handles that are alive. A handle is the address of what it stands for.
template <typename T>
class Handles {
public:
    void* add(std::shared_ptr<T> value) {
        void* handle = value.get();
        all[handle] = std::move(value);
        return handle;
    }
    std::shared_ptr<T> find(void* handle) const {
        const auto found = all.find(handle);
        return found == all.end() ? nullptr : found->second;
    }
    bool remove(void* handle) { return all.erase(handle) == 1; }

private:
    std::map<void*, std::shared_ptr<T>> all;
};

template <typename T>
Handles<T>& handles() {
    static auto* all = new Handles<T>;
    return *all;
}

// Calls that a capture in global mode, or in the mode of this thread, forbids.
bool capture_forbids() {
    for (const Device* device : devices()) {
        for (const auto& stream : device->streams) {
            const Graph* graph = stream->capture.get();
            if (graph != nullptr && (graph->mode == 0 || (graph->mode == 1 && graph->thread == std::this_thread::get_id()))) return true;
        }
    }
    return false;
}

Device* owner(uint64_t address) {
    for (Device* device : devices()) {
        if (device->memory.contains(address)) return device;
    }
    return nullptr;
}

Result copy_to_device(const std::shared_ptr<Stream>& stream, uint64_t to, const void* from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    const std::string name = "copy of " + std::to_string(bytes) + " bytes to the device";
    if (pinned().holds(from, bytes) || stream->capture) {
        const bool was_pinned = pinned().holds(from, bytes);
        return submit(stream, name, [=] {
            if (was_pinned && !pinned().holds(from, bytes)) fault(name + ": its page-locked source was freed");
            std::memcpy(memory_at(device, to, bytes, name), from, bytes);
        });
    }
    // Pageable memory is staged before the call returns.
    auto staged = std::make_shared<std::vector<uint8_t>>(static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + bytes);
    return submit(stream, name, [=] { std::memcpy(memory_at(device, to, bytes, name), staged->data(), bytes); });
}

Result copy_to_host(const std::shared_ptr<Stream>& stream, void* to, uint64_t from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    const std::string name = "copy of " + std::to_string(bytes) + " bytes to the host";
    const bool was_pinned = pinned().holds(to, bytes);
    const Result result = submit(stream, name, [=] {
        if (was_pinned && !pinned().holds(to, bytes)) fault(name + ": its page-locked destination was freed");
        std::memcpy(to, memory_at(device, from, bytes, name), bytes);
    });
    // A copy to pageable memory returns when it is done.
    if (!was_pinned && !stream->capture) wait_for({stream, stream->submitted});
    return result;
}

Result copy_between(const std::shared_ptr<Stream>& stream, uint64_t to, uint64_t from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    Device *to_device = owner(to), *from_device = owner(from);
    if (to_device == nullptr || from_device == nullptr) return INVALID_VALUE;
    const std::string name = "copy of " + std::to_string(bytes) + " bytes on the device";
    return submit(stream, name, [=] {
        std::memmove(memory_at(to_device, to, bytes, name), memory_at(from_device, from, bytes, name), bytes);
    });
}

template <typename T>
Result fill(const std::shared_ptr<Stream>& stream, uint64_t to, T value, size_t count) {
    if (to % sizeof(T) != 0) return INVALID_VALUE;
    if (count == 0) return SUCCESS;
    Device* device = stream->device;
    const std::string name = "fill of " + std::to_string(count * sizeof(T)) + " bytes";
    return submit(stream, name, [=] {
        uint8_t* at = memory_at(device, to, count * sizeof(T), name);
        for (size_t i = 0; i < count; ++i) std::memcpy(at + i * sizeof(T), &value, sizeof(T));
    });
}

ptx::Schedule schedule() {
    const std::string& name = Settings::get().schedule;
    return name == "forward"    ? ptx::Schedule::FORWARD
           : name == "backward" ? ptx::Schedule::BACKWARD
           : name == "shuffled" ? ptx::Schedule::SHUFFLED
                                : ptx::Schedule::TOGETHER;
}

void run_kernel(Device& device, Module& module, const ptx::Kernel& kernel, ptx::Extent grid, ptx::Extent block,
                size_t dynamic_shared, const std::vector<uint8_t>& parameters) {
    ptx::Machine& machine = module.machine;
    machine.forget();
    for (const auto& [address, allocation] : device.memory.living()) machine.allow(address, allocation.bytes, allocation.host);
    machine.describe = [&device](uint64_t address) { return device.memory.describe(address); };
    const uint64_t before = machine.steps;
    machine.launch(kernel.name, grid, block, dynamic_shared, parameters, schedule());
    if (Settings::get().trace) say(kernel.name + ": " + std::to_string(machine.steps - before) + " instructions");
}

Result launch(void* function, ptx::Extent grid, ptx::Extent block, unsigned dynamic_shared, void* stream_handle, void** parameters) {
    const auto known = handles<Function>().find(function);
    if (!known) return INVALID_HANDLE;
    const auto stream = stream_of(stream_handle);
    if (!stream || known->module->device != stream->device) return INVALID_HANDLE;
    const ptx::Kernel& kernel = *known->kernel;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const char* wrong = nullptr;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0) wrong = "an empty grid or block";
    else if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) wrong = "a grid beyond (2^31 - 1, 65535, 65535)";
    else if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > MAX_THREADS) wrong = "a block of more than 1024 threads, or beyond (1024, 1024, 64)";
    else if (kernel.maximum_threads != 0 && threads > kernel.maximum_threads) wrong = "more threads a block than its launch bounds";
    else if (dynamic_shared > static_cast<unsigned>(known->dynamic_shared)) wrong = "more dynamic shared memory than its attribute allows";
    else if (parameters == nullptr && !kernel.parameters.empty()) wrong = "no parameters";
    if (wrong != nullptr) {
        say(kernel.name + ": launched with " + wrong);
        return INVALID_VALUE;
    }
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < kernel.parameters.size(); ++i) {
        const ptx::Parameter& parameter = kernel.parameters[i];
        bytes.resize(parameter.offset + parameter.bytes);
        std::memcpy(&bytes[parameter.offset], parameters[i], parameter.bytes);
    }
    auto module = known->module;
    Device* device = stream->device;
    return submit(stream, kernel.name, [=, &kernel] { run_kernel(*device, *module, kernel, grid, block, dynamic_shared, bytes); });
}

Result load(void** handle, const std::string& text) {
    if (bound == nullptr) return INVALID_CONTEXT;
    // An ELF file or a fat binary: machine code, of which this device has none.
    if (text.compare(0, 4, "\x7f""ELF") == 0 || text.compare(0, 4, "\x50\xed\x55\xba") == 0) return NO_BINARY_FOR_GPU;
    if (text.find(".version") == std::string::npos || text.find(".target") == std::string::npos) return INVALID_IMAGE;
    ptx::Module parsed = ptx::Module::parse(text);
    if (static_cast<int>(parsed.target) > Settings::get().capability) return INVALID_PTX;
    return *handle = handles<Module>().add(std::make_shared<Module>(std::move(parsed), bound)), SUCCESS;
}

}  // namespace

Device* current() { return bound; }

std::shared_ptr<Stream> stream_of(void* handle) {
    if (bound == nullptr) return nullptr;
    // CU_STREAM_LEGACY is 1, CU_STREAM_PER_THREAD 2: here the same one for all threads.
    if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return bound->null_stream;
    if (handle == reinterpret_cast<void*>(2)) return bound->thread_stream;
    const auto stream = handles<Stream>().find(handle);
    return stream && stream->device == bound ? stream : nullptr;
}

}  // namespace device

using namespace device;

// Takes the lock, and answers where there was no cuInit or no context is current.
#define GUARD std::lock_guard<std::recursive_mutex> guard(lock()); if (!initialized) return NOT_INITIALIZED
#define GUARD_CONTEXT GUARD; if (bound == nullptr) return INVALID_CONTEXT
#define STREAM(handle) const auto stream = stream_of(handle); if (!stream) return INVALID_HANDLE

// Initialisation, devices, errors.

ENTRY cuInit(unsigned flags) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (flags != 0) return INVALID_VALUE;
    if (Settings::get().devices == 0) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

ENTRY cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }

ENTRY cuDeviceGetCount(int* count) {
    GUARD;
    return *count = static_cast<int>(devices().size()), SUCCESS;
}

ENTRY cuDeviceGet(int* device, int ordinal) {
    GUARD;
    if (device_at(ordinal) == nullptr) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}

ENTRY cuDeviceGetName(char* name, int length, int device) {
    GUARD;
    if (device_at(device) == nullptr) return INVALID_DEVICE;
    std::snprintf(name, length, "Emulated device (PTX interpreter)");
    return SUCCESS;
}

ENTRY cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
    GUARD;
    if (device_at(device) == nullptr) return INVALID_DEVICE;
    std::memset(uuid, 0, 16);
    uuid[15] = static_cast<unsigned char>(device + 1);
    return SUCCESS;
}
ENTRY cuDeviceGetUuid(unsigned char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

ENTRY cuDeviceTotalMem_v2(size_t* bytes, int device) {
    GUARD;
    if (device_at(device) == nullptr) return INVALID_DEVICE;
    return *bytes = Settings::get().memory, SUCCESS;
}

ENTRY cuDeviceGetAttribute(int* value, int attribute, int device) {
    GUARD;
    if (device_at(device) == nullptr) return INVALID_DEVICE;
    if (attribute < 1 || attribute > 150) return INVALID_VALUE;
    switch (attribute) {
        case 1: case 2: case 3: *value = MAX_THREADS; break;  // a block's threads, its x and its y
        case 4: *value = 64; break;                           // its z
        case 5: *value = 0x7fffffff; break;                   // a grid's x
        case 6: case 7: *value = 65535; break;                // its y and z
        case 8: *value = DEFAULT_SHARED; break;
        case 9: *value = 64 << 10; break;                     // constant memory
        case 10: *value = 32; break;                          // a warp
        case 12: case 82: *value = 65536; break;              // registers of a block, of a multiprocessor
        case 13: *value = 1000000; break;                     // kHz
        case 16: *value = 2; break;                           // multiprocessors
        case 33: *value = device; break;                      // PCI bus
        case 38: *value = 1 << 20; break;                     // L2 cache
        case 39: *value = 2048; break;                        // threads of a multiprocessor
        case 40: *value = 2; break;                           // copy engines
        case 75: *value = Settings::get().capability / 10; break;
        case 76: *value = Settings::get().capability % 10; break;
        case 81: *value = most_shared() + 1024; break;        // shared memory of a multiprocessor
        case 97: *value = most_shared(); break;               // of a block that asks for it
        case 106: *value = 32; break;                         // blocks of a multiprocessor
        case 111: *value = 1024; break;                       // shared memory that the system keeps of each block
        // Concurrent kernels, one address space, registered host memory, memory pools.
        case 31: case 41: case 99: case 115: *value = 1; break;
        default: *value = 0;
    }
    return SUCCESS;
}

namespace {
struct ErrorText { int code; const char *name, *text; };
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported by the emulated device"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "operation failed due to a previous error during capture"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
};
const ErrorText* error_text(int code) {
    for (const ErrorText& error : ERRORS) if (error.code == code) return &error;
    return nullptr;
}
}  // namespace

ENTRY cuGetErrorName(int code, const char** text) {
    const ErrorText* error = error_text(code);
    return *text = error ? error->name : nullptr, error ? SUCCESS : INVALID_VALUE;
}

ENTRY cuGetErrorString(int code, const char** text) {
    const ErrorText* error = error_text(code);
    return *text = error ? error->text : nullptr, error ? SUCCESS : INVALID_VALUE;
}

// Contexts.

ENTRY cuDevicePrimaryCtxRetain(void** context, int ordinal) {
    GUARD;
    Device* device = device_at(ordinal);
    if (device == nullptr) return INVALID_DEVICE;
    if (device->retained++ == 0) {
        device->null_stream = std::make_shared<Stream>(Stream{device, true, {}, 0, 0, nullptr});
        device->thread_stream = std::make_shared<Stream>(Stream{device, true, {}, 0, 0, nullptr});
        device->streams = {device->null_stream, device->thread_stream};
    }
    return *context = device, SUCCESS;
}

ENTRY cuDevicePrimaryCtxRelease_v2(int ordinal) {
    GUARD;
    Device* device = device_at(ordinal);
    if (device == nullptr) return INVALID_DEVICE;
    if (device->retained == 0) return INVALID_CONTEXT;
    if (--device->retained == 0) {
        for (const auto& [address, block] : device->memory.living()) device->memory.end(address);
        for (const auto& stream : device->streams) handles<Stream>().remove(stream.get());
        device->streams.clear();
    }
    return SUCCESS;
}
ENTRY cuDevicePrimaryCtxRelease(int ordinal) { return cuDevicePrimaryCtxRelease_v2(ordinal); }

ENTRY cuCtxSetCurrent(void* context) {
    GUARD;
    auto* device = static_cast<Device*>(context);
    if (device != nullptr && (std::find(devices().begin(), devices().end(), device) == devices().end() || device->retained == 0)) return INVALID_CONTEXT;
    return bound = device, SUCCESS;
}

ENTRY cuCtxGetCurrent(void** context) {
    GUARD;
    return *context = bound, SUCCESS;
}

ENTRY cuCtxGetDevice(int* device) {
    GUARD_CONTEXT;
    return *device = bound->ordinal, SUCCESS;
}

ENTRY cuCtxSynchronize() {
    GUARD_CONTEXT;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    return wait_for_all(*bound), SUCCESS;
}

ENTRY cuCtxSetFlags(unsigned) {
    GUARD_CONTEXT;
    return SUCCESS;
}

ENTRY cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    GUARD_CONTEXT;
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return SUCCESS;
}

// Memory.

ENTRY cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    GUARD_CONTEXT;
    *total = Settings::get().memory;
    *free_bytes = *total - bound->memory.used();
    return SUCCESS;
}

ENTRY cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    GUARD_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    *address = bound->memory.reserve(bytes);
    if (*address == 0) return OUT_OF_MEMORY;
    return bound->memory.begin(*address), SUCCESS;
}

// Waits for nothing: what still uses the memory is a fault when it runs.
ENTRY cuMemFree_v2(uint64_t address) {
    GUARD_CONTEXT;
    if (address == 0) return SUCCESS;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    if (!bound->memory.reserved(address)) return INVALID_VALUE;
    return bound->memory.end(address), SUCCESS;
}

ENTRY cuMemAllocAsync(uint64_t* address, size_t bytes, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    *address = 0;
    if (bytes == 0) return SUCCESS;
    *address = bound->memory.reserve(bytes);
    if (*address == 0) {
        // A pool takes back what is freed by then.
        wait_for_all(*bound);
        *address = bound->memory.reserve(bytes);
        if (*address == 0) return OUT_OF_MEMORY;
    }
    return submit(stream, "allocation", [device = bound, at = *address] { device->memory.begin(at); });
}

ENTRY cuMemFreeAsync(uint64_t address, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    if (address == 0) return SUCCESS;
    if (!bound->memory.reserved(address)) return INVALID_VALUE;
    return submit(stream, "free", [device = bound, address] { device->memory.end(address); });
}

ENTRY cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    GUARD_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    *start = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*start == nullptr) return OUT_OF_MEMORY;
    std::memset(*start, 0xff, bytes);
    return pinned().add(*start, bytes), SUCCESS;
}
ENTRY cuMemAllocHost_v2(void** start, size_t bytes) { return cuMemHostAlloc(start, bytes, 0); }

ENTRY cuMemFreeHost(void* start) {
    GUARD_CONTEXT;
    if (!pinned().remove(start)) return INVALID_VALUE;
    return std::free(start), SUCCESS;
}

ENTRY cuMemHostRegister_v2(void* start, size_t bytes, unsigned) {
    GUARD_CONTEXT;
    if (start == nullptr || bytes == 0) return INVALID_VALUE;
    if (pinned().holds(start, 1)) return HOST_MEMORY_ALREADY_REGISTERED;
    return pinned().add(start, bytes), SUCCESS;
}

ENTRY cuMemHostUnregister(void* start) {
    GUARD_CONTEXT;
    return pinned().remove(start) ? SUCCESS : HOST_MEMORY_NOT_REGISTERED;
}

ENTRY cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return copy_to_device(stream, to, from, bytes);
}

ENTRY cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return copy_to_host(stream, to, from, bytes);
}

ENTRY cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return copy_between(stream, to, from, bytes);
}

ENTRY cuMemcpyPeerAsync(uint64_t to, void*, uint64_t from, void*, size_t bytes, void* handle) { return cuMemcpyDtoDAsync_v2(to, from, bytes, handle); }

ENTRY cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    GUARD_CONTEXT;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    const Result result = copy_to_device(bound->null_stream, to, from, bytes);
    wait_for({bound->null_stream, bound->null_stream->submitted});
    return result;
}

ENTRY cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    GUARD_CONTEXT;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    const Result result = copy_to_host(bound->null_stream, to, from, bytes);
    wait_for({bound->null_stream, bound->null_stream->submitted});
    return result;
}

// Asynchronous for the host, like all copies within a device.
ENTRY cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    GUARD_CONTEXT;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    return copy_between(bound->null_stream, to, from, bytes);
}

ENTRY cuMemsetD8Async(uint64_t to, uint8_t value, size_t count, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return fill(stream, to, value, count);
}
ENTRY cuMemsetD16Async(uint64_t to, uint16_t value, size_t count, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return fill(stream, to, value, count);
}
ENTRY cuMemsetD32Async(uint64_t to, uint32_t value, size_t count, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return fill(stream, to, value, count);
}
// Asynchronous for the host, on the null stream.
ENTRY cuMemsetD8_v2(uint64_t to, uint8_t value, size_t count) { return cuMemsetD8Async(to, value, count, nullptr); }
ENTRY cuMemsetD16_v2(uint64_t to, uint16_t value, size_t count) { return cuMemsetD16Async(to, value, count, nullptr); }
ENTRY cuMemsetD32_v2(uint64_t to, uint32_t value, size_t count) { return cuMemsetD32Async(to, value, count, nullptr); }

// Streams.

ENTRY cuStreamCreate(void** handle, unsigned flags) {
    GUARD_CONTEXT;
    if (flags > 1) return INVALID_VALUE;
    auto stream = std::make_shared<Stream>(Stream{bound, flags == 0, {}, 0, 0, nullptr});
    bound->streams.push_back(stream);
    return *handle = handles<Stream>().add(stream), SUCCESS;
}
ENTRY cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

// What is queued runs all the same.
ENTRY cuStreamDestroy_v2(void* handle) {
    GUARD_CONTEXT;
    const auto stream = handles<Stream>().find(handle);
    if (!stream) return INVALID_HANDLE;
    handles<Stream>().remove(handle);
    auto& streams = stream->device->streams;
    submit(stream, "end of a stream", [&streams, at = stream.get()] {
        streams.erase(std::find_if(streams.begin(), streams.end(), [at](const auto& other) { return other.get() == at; }));
    });
    return SUCCESS;
}

ENTRY cuStreamSynchronize(void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    return wait_for({stream, stream->submitted}), SUCCESS;
}

// Asked again and again, a stream moves on.
ENTRY cuStreamQuery(void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    if (stream->completed == stream->submitted) return SUCCESS;
    return run_until({stream, stream->completed + 1}), NOT_READY;
}

ENTRY cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    GUARD_CONTEXT;
    STREAM(handle);
    const auto event = handles<Event>().find(event_handle);
    if (!event) return INVALID_HANDLE;
    if (event->captured) {
        // Joins the capture.
        if (stream->capture && stream->capture != event->captured) return CAPTURE_ISOLATION;
        return stream->capture = event->captured, SUCCESS;
    }
    if (!event->point.stream) return SUCCESS;
    if (stream->capture) return CAPTURE_ISOLATION;
    return submit(stream, "wait", [] {}, {event->point});
}

ENTRY cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    GUARD_CONTEXT;
    STREAM(handle);
    return submit(stream, "function of the host", [=] { function(data); });
}

// Events.

ENTRY cuEventCreate(void** handle, unsigned flags) {
    GUARD_CONTEXT;
    return *handle = handles<Event>().add(std::make_shared<Event>(Event{bound, (flags & 2) == 0, {}, nullptr, nullptr})), SUCCESS;
}

ENTRY cuEventDestroy_v2(void* handle) {
    GUARD;
    return handles<Event>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

ENTRY cuEventRecord(void* handle, void* stream_handle) {
    GUARD_CONTEXT;
    STREAM(stream_handle);
    const auto event = handles<Event>().find(handle);
    if (!event || event->device != bound) return INVALID_HANDLE;
    event->captured = stream->capture;
    if (stream->capture) return SUCCESS;
    event->time = std::make_shared<double>(0.0);
    submit(stream, "event", [time = event->time] {
        *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    event->point = {stream, stream->submitted};
    return SUCCESS;
}
ENTRY cuEventRecordWithFlags(void* handle, void* stream, unsigned) { return cuEventRecord(handle, stream); }

ENTRY cuEventSynchronize(void* handle) {
    GUARD;
    const auto event = handles<Event>().find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->captured) return CAPTURED_EVENT;
    if (event->point.stream) wait_for(event->point);
    return SUCCESS;
}

ENTRY cuEventQuery(void* handle) {
    GUARD;
    const auto event = handles<Event>().find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->captured) return CAPTURED_EVENT;
    const Point point = event->point;
    if (!point.stream || point.stream->completed >= point.count) return SUCCESS;
    return run_until({point.stream, point.stream->completed + 1}), NOT_READY;
}

ENTRY cuEventElapsedTime_v2(float* milliseconds, void* start_handle, void* end_handle) {
    GUARD;
    const auto start = handles<Event>().find(start_handle), end = handles<Event>().find(end_handle);
    if (!start || !end || !start->timed || !end->timed || !start->point.stream || !end->point.stream) return INVALID_HANDLE;
    for (const auto& event : {start, end}) {
        if (event->captured) return CAPTURED_EVENT;
        if (event->point.stream->completed < event->point.count) return NOT_READY;
    }
    return *milliseconds = static_cast<float>(*end->time - *start->time), SUCCESS;
}
ENTRY cuEventElapsedTime(float* milliseconds, void* start, void* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }

// Modules and kernels.

ENTRY cuModuleLoadData(void** handle, const void* image) {
    GUARD_CONTEXT;
    // Text ends with a zero; machine code is known by its first bytes.
    const char* text = static_cast<const char*>(image);
    return load(handle, text[0] == 0x7f || text[0] == 0x50 ? std::string(text, 4) : std::string(text));
}
ENTRY cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) { return cuModuleLoadData(handle, image); }

ENTRY cuModuleLoad(void** handle, const char* path) {
    GUARD_CONTEXT;
    std::ifstream file(path, std::ios::binary);
    if (!file) return FILE_NOT_FOUND;
    std::ostringstream text;
    text << file.rdbuf();
    return load(handle, text.str());
}

ENTRY cuModuleUnload(void* handle) {
    GUARD_CONTEXT;
    return handles<Module>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

ENTRY cuModuleGetFunction(void** function, void* handle, const char* name) {
    GUARD_CONTEXT;
    const auto module = handles<Module>().find(handle);
    if (!module) return INVALID_HANDLE;
    const auto found = module->code.kernels.find(name);
    if (found == module->code.kernels.end()) return NOT_FOUND;
    const int left = DEFAULT_SHARED - static_cast<int>(found->second.static_shared);
    auto made = std::make_shared<Function>(Function{module, &found->second, std::max(left, 0)});
    return *function = handles<Function>().add(made), SUCCESS;
}

ENTRY cuModuleGetGlobal_v2(uint64_t*, size_t*, void* handle, const char*) {
    GUARD_CONTEXT;
    return handles<Module>().find(handle) ? NOT_FOUND : INVALID_HANDLE;
}

ENTRY cuFuncGetAttribute(int* value, int attribute, void* handle) {
    GUARD_CONTEXT;
    const auto function = handles<Function>().find(handle);
    if (!function) return INVALID_HANDLE;
    const ptx::Kernel& kernel = *function->kernel;
    switch (attribute) {
        case 0: *value = kernel.maximum_threads != 0 ? kernel.maximum_threads : MAX_THREADS; break;
        case 1: *value = kernel.static_shared; break;
        case 2: case 3: *value = 0; break;  // constant and local memory
        case 5: *value = function->module->code.target; break;
        case 6: *value = Settings::get().capability; break;
        case 8: *value = function->dynamic_shared; break;
        default: return NOT_SUPPORTED;  // registers are ptxas's to count
    }
    return SUCCESS;
}

ENTRY cuFuncSetAttribute(void* handle, int attribute, int value) {
    GUARD_CONTEXT;
    const auto function = handles<Function>().find(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute == 9) return SUCCESS;  // the preferred share of the L1 cache
    if (attribute != 8) return NOT_SUPPORTED;
    if (value < 0 || value + static_cast<int>(function->kernel->static_shared) > most_shared()) return INVALID_VALUE;
    return function->dynamic_shared = value, SUCCESS;
}

ENTRY cuFuncSetCacheConfig(void* handle, int) {
    GUARD_CONTEXT;
    return handles<Function>().find(handle) ? SUCCESS : INVALID_HANDLE;
}

ENTRY cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                     unsigned block_z, unsigned dynamic_shared, void* stream, void** parameters, void** extra) {
    GUARD_CONTEXT;
    if (extra != nullptr) return NOT_SUPPORTED;
    return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared, stream, parameters);
}

// Graphs.

ENTRY cuStreamBeginCapture_v2(void* handle, int mode) {
    GUARD_CONTEXT;
    STREAM(handle);
    if (stream == bound->null_stream) return CAPTURE_UNSUPPORTED;
    if (stream->capture || mode < 0 || mode > 2) return INVALID_VALUE;
    stream->capture = std::make_shared<Graph>(Graph{{}, mode, std::this_thread::get_id(), stream.get()});
    return SUCCESS;
}

ENTRY cuStreamEndCapture(void* handle, void** graph) {
    GUARD_CONTEXT;
    STREAM(handle);
    const auto captured = stream->capture;
    if (!captured || captured->origin != stream.get()) return CAPTURE_UNMATCHED;
    for (const auto& other : bound->streams) {
        if (other->capture == captured) other->capture = nullptr;
    }
    return *graph = handles<Graph>().add(captured), SUCCESS;
}

ENTRY cuStreamIsCapturing(void* handle, int* status) {
    GUARD_CONTEXT;
    STREAM(handle);
    return *status = stream->capture ? 1 : 0, SUCCESS;
}

// An executable graph has the operations of its graph, which nothing changes any more.
struct Executable { std::shared_ptr<Graph> graph; };

ENTRY cuGraphInstantiateWithFlags(void** executable, void* handle, unsigned long long) {
    GUARD_CONTEXT;
    const auto graph = handles<Graph>().find(handle);
    if (!graph) return INVALID_VALUE;
    return *executable = handles<Executable>().add(std::make_shared<Executable>(Executable{graph})), SUCCESS;
}

ENTRY cuGraphUpload(void* executable, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    return handles<Executable>().find(executable) ? SUCCESS : INVALID_VALUE;
}

ENTRY cuGraphLaunch(void* executable, void* handle) {
    GUARD_CONTEXT;
    STREAM(handle);
    const auto found = handles<Executable>().find(executable);
    if (!found) return INVALID_VALUE;
    return submit(stream, "graph of " + std::to_string(found->graph->operations.size()) + " operations", [graph = found->graph] {
        for (const Operation& operation : graph->operations) operation.run();
    });
}

ENTRY cuGraphExecDestroy(void* executable) {
    GUARD;
    return handles<Executable>().remove(executable) ? SUCCESS : INVALID_VALUE;
}

ENTRY cuGraphDestroy(void* graph) {
    GUARD;
    return handles<Graph>().remove(graph) ? SUCCESS : INVALID_VALUE;
}

// What else programs may link to, or look for: not emulated.
#define WITHOUT(name) ENTRY name() { return NOT_SUPPORTED; }
WITHOUT(cuCtxCreate_v2) WITHOUT(cuCtxCreate_v3) WITHOUT(cuCtxCreate_v4) WITHOUT(cuCtxDestroy_v2) WITHOUT(cuCtxGetLimit) WITHOUT(cuCtxSetLimit)
WITHOUT(cuCtxGetCacheConfig) WITHOUT(cuCtxSetCacheConfig) WITHOUT(cuMemAllocManaged) WITHOUT(cuMemAllocFromPoolAsync)
WITHOUT(cuMemAdvise) WITHOUT(cuMemAdvise_v2) WITHOUT(cuMemPrefetchAsync) WITHOUT(cuMemPrefetchAsync_v2) WITHOUT(cuStreamAttachMemAsync)
WITHOUT(cuDeviceGetDefaultMemPool) WITHOUT(cuDeviceGetMemPool) WITHOUT(cuDeviceSetMemPool) WITHOUT(cuMemPoolCreate) WITHOUT(cuMemPoolDestroy)
WITHOUT(cuMemPoolGetAttribute) WITHOUT(cuMemPoolSetAttribute) WITHOUT(cuMemPoolTrimTo) WITHOUT(cuLaunchCooperativeKernel) WITHOUT(cuLaunchKernelEx)
WITHOUT(cuModuleLoadFatBinary) WITHOUT(cuProfilerStart) WITHOUT(cuProfilerStop) WITHOUT(cuImportExternalMemory)
WITHOUT(cuDestroyExternalMemory) WITHOUT(cuExternalMemoryGetMappedBuffer) WITHOUT(cuOccupancyAvailableDynamicSMemPerBlock)
WITHOUT(cuOccupancyMaxActiveBlocksPerMultiprocessor) WITHOUT(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
WITHOUT(cuOccupancyMaxActiveClusters) WITHOUT(cuOccupancyMaxPotentialBlockSize) WITHOUT(cuOccupancyMaxPotentialBlockSizeWithFlags)
WITHOUT(cuOccupancyMaxPotentialClusterSize) WITHOUT(cuGetProcAddress_v2) WITHOUT(cuMemHostGetDevicePointer_v2) WITHOUT(cuStreamGetCaptureInfo_v3)
