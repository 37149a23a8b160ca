// The emulated device itself, through the entry points that programs load from it.
//
//     check LIBRARY_FOLDER PTX_OF_LATENT_DISTANCE
//
// Faults (an access out of bounds, ...) end the process: each is provoked in a child.

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace {

void *driver, *blas;
using Handle = void*;
using Address = uint64_t;
constexpr unsigned NON_BLOCKING = 1;

// Calls an entry point with arguments of the types given.
template <typename... Arguments>
int call(void* library, const char* name, Arguments... arguments) {
    void* found = dlsym(library, name);
    if (found == nullptr) std::printf("FAILED no %s\n", name), std::exit(1);
    return reinterpret_cast<int (*)(Arguments...)>(found)(arguments...);
}

void expect(bool holds, const char* what) {
    if (!holds) std::printf("FAILED %s\n", what), std::exit(1);
    std::printf("  %s\n", what);
}

template <typename... Arguments>
void good(const char* name, Arguments... arguments) {
    const int result = call(std::strncmp(name, "cublas", 6) == 0 ? blas : driver, name, arguments...);
    if (result != 0) std::printf("FAILED %s answered %d\n", name, result), std::exit(1);
}

Address allocated(size_t bytes) {
    Address address = 0;
    good("cuMemAlloc_v2", &address, bytes);
    return address;
}

Handle stream() {
    Handle made;
    good("cuStreamCreate", &made, NON_BLOCKING);
    return made;
}

float* pinned(size_t count) {
    void* made;
    good("cuMemHostAlloc", &made, count * sizeof(float), 0u);
    return static_cast<float*>(made);
}

template <typename T>
Address uploaded(const std::vector<T>& values) {
    const Address address = allocated(values.size() * sizeof(T));
    good("cuMemcpyHtoD_v2", address, static_cast<const void*>(values.data()), values.size() * sizeof(T));
    return address;
}

template <typename T>
std::vector<T> downloaded(Address address, size_t count) {
    std::vector<T> values(count);
    good("cuMemcpyDtoH_v2", static_cast<void*>(values.data()), address, count * sizeof(T));
    return values;
}

// That a child ends by itself with a message that holds `text`.
void faults(const char* what, const std::string& text, const std::function<void()>& provoke) {
    std::fflush(nullptr);
    int ends[2];
    if (pipe(ends) != 0) std::exit(2);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        provoke();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[512];
    for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;) said.append(part, got);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    const bool ended = !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (!ended || said.find(text) == std::string::npos) std::printf("FAILED %s: it said %s\n", what, said.c_str()), std::exit(1);
    std::printf("  %s: %s", what, said.c_str());
}

void launch_distances(Handle function, Handle on, Address out, Address x, Address y, int n, int m, int depth) {
    void* parameters[] = {&out, &x, &y, &n, &m, &depth};
    good("cuLaunchKernel", function, (m + 127) / 128u, (n + 127) / 128u, 1u, 256u, 1u, 1u, 0u, on, static_cast<void**>(parameters), static_cast<void**>(nullptr));
}

float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

void product(bool transpose_a, bool transpose_b, int m, int n, int k, bool to_bf16) {
    auto values = [](size_t count, unsigned seed) {
        std::vector<uint16_t> made(count);
        for (uint16_t& value : made) {
            seed = seed * 1664525 + 1013904223;
            const float real = static_cast<int>(seed >> 24) - 128;  // exact in bf16, and sums in f32
            uint32_t bits;
            std::memcpy(&bits, &real, 4);
            value = bits >> 16;
        }
        return made;
    };
    const auto a = values(static_cast<size_t>(m) * k, 1), b = values(static_cast<size_t>(k) * n, 2);
    std::vector<float> c(static_cast<size_t>(m) * n, 3.0f);
    const Address at_a = uploaded(a), at_b = uploaded(b), at_c = to_bf16 ? allocated(c.size() * 2) : uploaded(c);
    Handle handle;
    good("cublasCreate_v2", &handle);
    const float alpha = 2.0f, beta = to_bf16 ? 0.0f : 5.0f;
    good("cublasGemmEx", handle, int{transpose_a}, int{transpose_b}, m, n, k, static_cast<const void*>(&alpha), at_a, 14, transpose_a ? k : m, at_b, 14,
         transpose_b ? n : k, static_cast<const void*>(&beta), at_c, to_bf16 ? 14 : 0, m, 68, -1);
    const auto rounded = downloaded<uint16_t>(at_c, to_bf16 ? c.size() : 0);
    const auto whole = downloaded<float>(at_c, to_bf16 ? 0 : c.size());
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j < n; ++j) {
            double sum = 0.0;
            for (int l = 0; l < k; ++l) sum += static_cast<double>(from_bf16(a[transpose_a ? i * k + l : l * m + i])) * from_bf16(b[transpose_b ? l * n + j : j * k + l]);
            const double wanted = alpha * sum + beta * 3.0;
            const size_t place = static_cast<size_t>(j) * m + i;
            const bool right = to_bf16 ? std::fabs(from_bf16(rounded[place]) - wanted) <= std::fabs(wanted) * 0x1p-8 : whole[place] == wanted;
            if (!right) std::printf("FAILED product at %d, %d of %d, %d, %d\n", i, j, m, n, k), std::exit(1);
        }
    }
    good("cublasDestroy_v2", handle);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return std::fprintf(stderr, "usage: check LIBRARY_FOLDER PTX_OF_LATENT_DISTANCE\n"), 2;
    const std::string folder = arguments[1];
    driver = dlopen((folder + "/libcuda.so").c_str(), RTLD_LAZY);
    blas = dlopen((folder + "/libcublas.so").c_str(), RTLD_LAZY);
    expect(driver != nullptr && blas != nullptr, "both libraries load");

    int devices = 0;
    expect(call(driver, "cuDeviceGetCount", &devices) == 3, "nothing before cuInit");
    good("cuInit", 0u);
    good("cuDeviceGetCount", &devices);
    expect(devices == 2, "as many devices as EMULATED_DEVICES says");
    Handle context;
    good("cuDevicePrimaryCtxRetain", &context, 0);
    Address nothing;
    expect(call(driver, "cuMemAlloc_v2", &nothing, size_t{4}) == 201, "no memory without a context");
    good("cuCtxSetCurrent", context);
    expect(call(driver, "cuMemAlloc_v2", &nothing, ~size_t{0} / 2) == 2, "out of memory");

    const std::vector<float> values = {1, 2, 3, 4};
    expect(downloaded<float>(uploaded(values), 4) == values, "a copy there and back");
    expect(std::isnan(downloaded<float>(allocated(4), 1)[0]), "new memory is NaN");

    std::ifstream file(arguments[2]);
    std::ostringstream text;
    text << file.rdbuf();
    const std::string ptx = text.str();
    Handle module, function;
    good("cuModuleLoadData", &module, static_cast<const void*>(ptx.c_str()));
    good("cuModuleGetFunction", &function, module, "latent_distances");
    expect(call(driver, "cuModuleGetFunction", &function, module, "no_such_kernel") == 500, "a kernel that is not there");
    const int n = 140, m = 37, depth = 19;
    std::vector<float> x(n * depth), y(m * depth);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101);
    for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(i * 53 % 97);
    const Address at_x = uploaded(x), at_y = uploaded(y), out = allocated(n * m * 4);
    const Handle first = stream(), second = stream();
    launch_distances(function, first, out, at_x, at_y, n, m, depth);
    expect(std::isnan(downloaded<float>(out, 1)[0]), "a launch that nobody waited for has not run");
    good("cuStreamSynchronize", first);
    const auto distances = downloaded<float>(out, n * m);
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < m; ++j) {
            float sum = 0.0f;  // of whole numbers: exact
            for (int c = 0; c < depth; ++c) sum += (x[i * depth + c] - y[j * depth + c]) * (x[i * depth + c] - y[j * depth + c]);
            if (distances[i * m + j] != sum) expect(false, "a kernel's result");
        }
    }
    expect(true, "a kernel's result");

    // Two streams: an upload on one, a copy of it on the other.
    float *source = pinned(4), *result = pinned(4);
    auto through = [&](bool ordered) {
        const Address from = allocated(16), to = allocated(16);
        for (int i = 0; i < 4; ++i) source[i] = 7.0f + i, result[i] = 0.0f;
        good("cuMemcpyHtoDAsync_v2", from, static_cast<const void*>(source), size_t{16}, first);
        Handle event;
        good("cuEventCreate", &event, 2u);
        good("cuEventRecord", event, first);
        expect(call(driver, "cuEventQuery", event) == 600 || ordered, "an event is not ready at once");
        if (ordered) good("cuStreamWaitEvent", second, event, 0u);
        good("cuMemcpyDtoDAsync_v2", to, from, size_t{16}, second);
        good("cuMemcpyDtoHAsync_v2", static_cast<void*>(result), to, size_t{16}, second);
        expect(result[0] == 0.0f, "a copy to page-locked memory is not done at once");
        good("cuStreamSynchronize", second);
        return result[3];
    };
    expect(through(true) == 10.0f, "an event orders two streams");
    const Address from = allocated(16);
    good("cuMemcpyHtoDAsync_v2", from, static_cast<const void*>(source), size_t{16}, first);
    good("cuMemcpyDtoHAsync_v2", static_cast<void*>(result), from, size_t{16}, second);
    good("cuStreamSynchronize", second);
    expect(std::isnan(result[3]), "without an event the other stream sees memory as it was");
    source[3] = -1.0f;
    good("cuStreamSynchronize", first);
    expect(downloaded<float>(from, 4)[3] == -1.0f, "a copy reads its page-locked source late");
    std::vector<float> pageable = values;
    good("cuMemcpyHtoDAsync_v2", from, static_cast<const void*>(pageable.data()), size_t{16}, first);
    pageable[3] = -2.0f;
    good("cuStreamSynchronize", first);
    expect(downloaded<float>(from, 4) == values, "a copy has its pageable source at once");

    // A graph, replayed.
    good("cuStreamBeginCapture_v2", first, 1);
    launch_distances(function, first, out, at_x, at_y, n, m, depth);
    expect(call(driver, "cuStreamSynchronize", first) == 900, "a capture waits for nothing");
    Handle graph, executable;
    good("cuStreamEndCapture", first, &graph);
    good("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    for (int turn = 0; turn < 2; ++turn) {
        good("cuMemsetD32Async", out, 0u, static_cast<size_t>(n) * m, first);
        good("cuGraphLaunch", executable, first);
        good("cuStreamSynchronize", first);
        if (downloaded<float>(out, n * m) != distances) expect(false, "a graph's result");
    }
    expect(true, "a graph's result, twice");

    for (int shape = 0; shape < 4; ++shape) product(shape & 1, shape & 2, 33 + shape, 5 + shape, 70, false);
    product(true, false, 64, 3, 48, true);
    product(false, false, 1, 1, 1, false);
    expect(true, "products of matrices");

    faults("out of bounds", "latent_distances: out of bounds", [&] {
        launch_distances(function, first, out, at_x, at_y, n, m + 1, depth);
        good("cuStreamSynchronize", first);
    });
    faults("use after free", "that was freed", [&] {
        launch_distances(function, first, out, at_x, at_y, n, m, depth);
        good("cuMemFree_v2", at_x);
        good("cuStreamSynchronize", first);
    });
    faults("use before an allocation of another stream", "that nothing orders before this", [&] {
        Address late;
        good("cuMemAllocAsync", &late, x.size() * 4, second);
        launch_distances(function, first, out, late, at_y, n, m, depth);
        good("cuStreamSynchronize", first);
    });
    faults("a pointer of the host in a kernel", "an address of the host", [&] {
        launch_distances(function, first, out, reinterpret_cast<Address>(x.data()), at_y, n, m, depth);
        good("cuStreamSynchronize", first);
    });
    faults("memory of another device", "never allocated on this device", [&] {
        Handle other;
        good("cuDevicePrimaryCtxRetain", &other, 1);
        good("cuCtxSetCurrent", other);
        const Address there = uploaded(x);
        good("cuCtxSetCurrent", context);
        launch_distances(function, first, out, there, at_y, n, m, depth);
        good("cuStreamSynchronize", first);
    });
    faults("a product out of bounds", "product of m", [&] {
        Handle handle;
        good("cublasCreate_v2", &handle);
        const float one = 1.0f;
        good("cublasSgemm_v2", handle, 0, 0, n, n, depth, &one, at_x, n, at_y, depth, &one, out, n);
        good("cuCtxSynchronize");
    });
    faults("page-locked memory freed too soon", "its page-locked source was freed", [&] {
        good("cuMemcpyHtoDAsync_v2", from, static_cast<const void*>(source), size_t{16}, first);
        good("cuMemFreeHost", static_cast<void*>(source));
        good("cuStreamSynchronize", first);
    });
    std::printf("the emulated device is as it should be\n");
}
