// What surrounds products of int8 in prediction: rounding the rows of a left factor, and scaling those of a product.

#include <omp.h>

#include "vectors.h"

namespace {

typedef int8_t loose_bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

inline vec nearest(vec x) {
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    return (x + magic) - magic;
}
inline vec magnitude(vec x) { return where(x < 0.0f, -x, x); }

}  // namespace

extern "C" {

// out [rows, width] = x / scale, rounded; scale [rows] is such that a row's largest number becomes 127. width is a
// multiple of 16. A row that is not finite gets a scale that is not.
void round_rows(const float* x, int8_t* out, float* scale, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * width;
        vec most{}, spoiled{};
        for (long j = 0; j < width; j += LANES) {
            const vec v = magnitude(load(from + j));
            most = where(v > most, v, most);
            spoiled += v - v;  // zero, or nan
        }
        const float top = largest(most) + sum(spoiled);
        scale[row] = top / 127.0f > 1.1754944e-38f || top != top ? top / 127.0f : 1.1754944e-38f;
        const float inverse = 1.0f / scale[row];
        for (long j = 0; j < width; j += LANES) {
            const vec v = nearest(load(from + j) * inverse);
            const vec kept = where(v > 127.0f, all(127.0f), where(v < -127.0f, all(-127.0f), v));
            *reinterpret_cast<loose_bytes*>(out + row * width + j) = __builtin_convertvector(kept, loose_bytes);
        }
    }
}

// y [rows, width] becomes y * scale + bias, and its GELU if asked. scale [rows]; bias [width] may be null.
void scale_rows(float* y, const float* scale, const float* bias, long rows, long width, int with_gelu, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row)
        for (long j = 0; j < width; j += LANES) {
            vec v = load(y + row * width + j) * scale[row];
            if (bias) v += load(bias + j);
            store(y + row * width + j, with_gelu ? v * normal_cdf(v) : v);
        }
}

}  // extern "C"
