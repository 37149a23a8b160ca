// The entry points of libcublas.so.13 that the emulated device has: matrix products, queued on the handle's stream.
//
// Column-major, as cuBLAS: C = alpha op(A) op(B) + beta C, op(A) [m, k], op(B) [k, n]. bf16 and f32 operands are exact
// in f32; products are added in f32 with one rounding each (fused), in ascending k; alpha times the sum is rounded to
// f32, beta C is added with one rounding more, and a bf16 result is then rounded to nearest even. With beta = 0,
// C is not read. The order of a real cuBLAS is its own and depends on the shape. EMULATED_GEMM=by_shape does so as
// well: k in 1 to 4 parts, as m and n say, so that a caller who takes equal bits of different shapes for granted is
// found out.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "device.hpp"

#define ENTRY extern "C" SHARED int

using namespace device;

namespace {

// cublasStatus_t
enum Status : int { OK = 0, NO_INITIALIZATION = 1, BAD_VALUE = 7, EXECUTION_FAILED = 13, UNSUPPORTED = 15 };
// cudaDataType_t
enum Type : int { F32 = 0, BF16 = 14 };

struct Handle {
    Device* device;
    std::shared_ptr<Stream> stream;
    bool device_scalars = false;
    int math_mode = 0, atomics_mode = 0;
};

struct Matrix {
    uint64_t address;
    Type type;
    int leading;
    long long stride;
    bool transposed = false;
};

struct Product {
    int m, n, k, count;
    Matrix a, b, c;
};

size_t bytes_of(Type type) { return type == F32 ? 4 : 2; }

float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float element(const uint8_t* at, Type type, size_t index) {
    if (type == BF16) {
        uint16_t bits;
        std::memcpy(&bits, at + index * 2, 2);
        return from_bf16(bits);
    }
    float value;
    std::memcpy(&value, at + index * 4, 4);
    return value;
}

// `columns` vectors of `rows` elements each, as f32, `padded` apart.
void unpack(std::vector<float>& into, const uint8_t* at, const Matrix& matrix, size_t outer, size_t inner, bool outer_is_column, size_t padded) {
    into.assign(inner * padded, 0.0f);
    for (size_t i = 0; i < inner; ++i) {
        for (size_t o = 0; o < outer; ++o)
            into[i * padded + o] = element(at, matrix.type, outer_is_column ? o * matrix.leading + i : i * matrix.leading + o);
    }
}

size_t parts(const Product& product) {
    static const char* order = std::getenv("EMULATED_GEMM");
    if (order == nullptr) return 1;
    if (std::strcmp(order, "by_shape") != 0) fault(std::string("EMULATED_GEMM is by_shape, not ") + order);
    // 63 - clz: the binary logarithm, so that sizes that callers choose among, powers of 4 apart, differ.
    return 1 + (product.m / 32 + 63 - __builtin_clzll(product.n)) % 4;
}

// 8 columns by 32 rows of the result, in registers: sums of a[k][row] b[k][column].
constexpr size_t ROWS = 32, COLUMNS = 4;

void tile(float (&sums)[COLUMNS][ROWS], const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth) {
    __m256 at[COLUMNS][ROWS / 8];
    for (auto& column : at) for (auto& part : column) part = _mm256_setzero_ps();
    for (size_t k = 0; k < depth; ++k) {
        __m256 rows[ROWS / 8];
        for (size_t r = 0; r < ROWS / 8; ++r) rows[r] = _mm256_loadu_ps(a + k * a_stride + r * 8);
        for (size_t c = 0; c < COLUMNS; ++c) {
            const __m256 value = _mm256_set1_ps(b[k * b_stride + c]);
            for (size_t r = 0; r < ROWS / 8; ++r) at[c][r] = _mm256_fmadd_ps(rows[r], value, at[c][r]);
        }
    }
    for (size_t c = 0; c < COLUMNS; ++c) for (size_t r = 0; r < ROWS / 8; ++r) _mm256_storeu_ps(&sums[c][r * 8], at[c][r]);
}

size_t extent(const Matrix& matrix, size_t rows, size_t columns) {
    return rows == 0 || columns == 0 ? 0 : ((columns - 1) * matrix.leading + rows) * bytes_of(matrix.type);
}

void multiply(Device* device, const Product& product, float alpha, float beta, const std::string& name) {
    const size_t m = product.m, n = product.n, k = product.k;
    const size_t padded_m = (m + ROWS - 1) / ROWS * ROWS, padded_n = (n + COLUMNS - 1) / COLUMNS * COLUMNS;
    std::vector<float> a, b;
    for (int index = 0; index < product.count; ++index) {
        auto at = [&](const Matrix& matrix, size_t rows, size_t columns) {
            return memory_at(device, matrix.address + index * matrix.stride * bytes_of(matrix.type), extent(matrix, rows, columns), name);
        };
        uint8_t* c = at(product.c, m, n);
        if (k > 0 && alpha != 0.0f) {
            unpack(a, product.a.transposed ? at(product.a, k, m) : at(product.a, m, k), product.a, m, k, product.a.transposed, padded_m);
            unpack(b, product.b.transposed ? at(product.b, n, k) : at(product.b, k, n), product.b, n, k, !product.b.transposed, padded_n);
        }
        const size_t depth = k > 0 && alpha != 0.0f ? k : 0, split = parts(product);
        for (size_t row = 0; row < m; row += ROWS) {
            for (size_t column = 0; column < n; column += COLUMNS) {
                float sums[COLUMNS][ROWS] = {}, more[COLUMNS][ROWS];
                for (size_t part = 0; part < split; ++part) {
                    const size_t first = depth * part / split, last = depth * (part + 1) / split;
                    tile(more, a.data() + first * padded_m + row, padded_m, b.data() + first * padded_n + column, padded_n, last - first);
                    for (size_t i = 0; i < COLUMNS; ++i) for (size_t j = 0; j < ROWS; ++j) sums[i][j] = part == 0 ? more[i][j] : sums[i][j] + more[i][j];
                }
                for (size_t i = column; i < std::min(n, column + COLUMNS); ++i) {
                    for (size_t j = row; j < std::min(m, row + ROWS); ++j) {
                        const size_t place = i * product.c.leading + j;
                        float value = alpha * sums[i - column][j - row];
                        if (beta != 0.0f) value = std::fma(beta, element(c, product.c.type, place), value);
                        if (product.c.type == BF16) {
                            const uint16_t bits = to_bf16(value);
                            std::memcpy(c + place * 2, &bits, 2);
                        } else {
                            std::memcpy(c + place * 4, &value, 4);
                        }
                    }
                }
            }
        }
    }
}

Status enqueue(void* opaque, const Product& product, const void* alpha, const void* beta) {
    auto* handle = static_cast<Handle*>(opaque);
    if (handle == nullptr) return NO_INITIALIZATION;
    const auto& [m, n, k, count, a, b, c] = product;
    if (m < 0 || n < 0 || k < 0 || count < 0 || alpha == nullptr || beta == nullptr) return BAD_VALUE;
    if (a.leading < std::max(1, a.transposed ? k : m) || b.leading < std::max(1, b.transposed ? n : k) || c.leading < std::max(1, m)) return BAD_VALUE;
    for (const Matrix& matrix : {a, b, c}) {
        if (matrix.type != F32 && matrix.type != BF16) return UNSUPPORTED;
    }
    // cublasGemmEx, table of types for CUBLAS_COMPUTE_32F.
    if (a.type != b.type || (a.type == F32 && c.type == BF16)) return UNSUPPORTED;
    if (m == 0 || n == 0 || count == 0) return OK;
    Device* device = handle->device;
    const std::string name = "product of m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k);
    float of_product = 0.0f, of_result = 0.0f;
    const uint64_t alpha_at = reinterpret_cast<uint64_t>(alpha), beta_at = reinterpret_cast<uint64_t>(beta);
    const bool on_device = handle->device_scalars;
    if (!on_device) std::memcpy(&of_product, alpha, 4), std::memcpy(&of_result, beta, 4);
    const Result result = submit(handle->stream, name, [=]() mutable {
        if (on_device) std::memcpy(&of_product, memory_at(device, alpha_at, 4, name), 4), std::memcpy(&of_result, memory_at(device, beta_at, 4, name), 4);
        multiply(device, product, of_product, of_result, name);
    });
    return result == SUCCESS ? OK : EXECUTION_FAILED;
}

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

#define GUARD std::lock_guard<std::recursive_mutex> guard(lock())
#define HANDLE auto* handle = static_cast<Handle*>(opaque); if (handle == nullptr) return NO_INITIALIZATION

ENTRY cublasCreate_v2(void** handle) {
    GUARD;
    if (current() == nullptr) return NO_INITIALIZATION;
    return *handle = new Handle{current(), stream_of(nullptr)}, OK;
}

ENTRY cublasDestroy_v2(void* opaque) {
    GUARD;
    HANDLE;
    return delete handle, OK;
}

ENTRY cublasSetStream_v2(void* opaque, void* stream_handle) {
    GUARD;
    HANDLE;
    const auto stream = stream_of(stream_handle);
    if (!stream || stream->device != handle->device) return BAD_VALUE;
    return handle->stream = stream, OK;
}

ENTRY cublasGetVersion_v2(void*, int* version) { return *version = 130002, OK; }

ENTRY cublasGetProperty(int which, int* value) {
    if (which < 0 || which > 2) return BAD_VALUE;
    return *value = which == 0 ? 13 : which == 1 ? 0 : 2, OK;
}

ENTRY cublasSetPointerMode_v2(void* opaque, int mode) {
    HANDLE;
    return handle->device_scalars = mode == 1, OK;
}
ENTRY cublasGetPointerMode_v2(void* opaque, int* mode) {
    HANDLE;
    return *mode = handle->device_scalars, OK;
}
ENTRY cublasSetMathMode(void* opaque, int mode) {
    HANDLE;
    return handle->math_mode = mode, OK;
}
ENTRY cublasGetMathMode(void* opaque, int* mode) {
    HANDLE;
    return *mode = handle->math_mode, OK;
}
ENTRY cublasSetAtomicsMode(void* opaque, int mode) {
    HANDLE;
    return handle->atomics_mode = mode, OK;
}
ENTRY cublasGetAtomicsMode(void* opaque, int* mode) {
    HANDLE;
    return *mode = handle->atomics_mode, OK;
}

// The products need none: only that there is what was promised.
ENTRY cublasSetWorkspace_v2(void* opaque, void* workspace, size_t bytes) {
    GUARD;
    HANDLE;
    const std::string name = "cuBLAS workspace";
    const auto at = address(workspace);
    if (at % 256 != 0) return BAD_VALUE;
    if (bytes > 0) submit(handle->stream, name, [=, device = handle->device] { memory_at(device, at, bytes, name); });
    return OK;
}

extern "C" SHARED const char* cublasGetStatusName(int status) { return status == OK ? "CUBLAS_STATUS_SUCCESS" : "a cuBLAS error"; }
extern "C" SHARED const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

ENTRY cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int a_type,
                                 int a_leading, long long a_stride, const void* b, int b_type, int b_leading, long long b_stride, const void* beta,
                                 void* c, int c_type, int c_leading, long long c_stride, int count, int compute, int) {
    GUARD;
    // CUBLAS_COMPUTE_32F, and the same without other precisions inside.
    if (compute != 68 && compute != 69) return UNSUPPORTED;
    if (transpose_a < 0 || transpose_a > 2 || transpose_b < 0 || transpose_b > 2) return BAD_VALUE;
    return enqueue(handle, {m, n, k, count, {address(a), Type(a_type), a_leading, a_stride, transpose_a != 0},
                            {address(b), Type(b_type), b_leading, b_stride, transpose_b != 0}, {address(c), Type(c_type), c_leading, c_stride}},
                   alpha, beta);
}

ENTRY cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int a_type, int a_leading,
                   const void* b, int b_type, int b_leading, const void* beta, void* c, int c_type, int c_leading, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type, a_leading, 0, b, b_type, b_leading, 0, beta, c,
                                      c_type, c_leading, 0, 1, compute, algorithm);
}

ENTRY cublasSgemmStridedBatched(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a, int a_leading,
                                long long a_stride, const float* b, int b_leading, long long b_stride, const float* beta, float* c, int c_leading,
                                long long c_stride, int count) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, F32, a_leading, a_stride, b, F32, b_leading, b_stride, beta,
                                      c, F32, c_leading, c_stride, count, 68, -1);
}

ENTRY cublasSgemm_v2(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a, int a_leading,
                     const float* b, int b_leading, const float* beta, float* c, int c_leading) {
    return cublasSgemmStridedBatched(handle, transpose_a, transpose_b, m, n, k, alpha, a, a_leading, 0, b, b_leading, 0, beta, c, c_leading, 0, 1);
}
