// Products of a few rows with many weights, as generation needs them: each weight is read from memory once for all rows.
#pragma once

#include <omp.h>

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int OUTPUTS = 4;
constexpr int TOGETHER = LANES == 16 ? 6 : 3;  // rows whose sums stay in registers
constexpr long AHEAD = 4096;                   // bytes: weights are fetched so long before they are read
constexpr long SMALL = 1 << 16;                // weights up to which one thread is fastest

// The sum of a vector's elements, by halves: a chain of additions would take longer than a short product.
inline float total_of(vec v) {
    float parts[LANES];
    store(parts, v);
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
}

enum Kind : long { FLOAT32, BFLOAT16, INT8 };  // of weights

// Weights [outputs, inputs]. A row of int8 is to be multiplied by its scale; scales and bias may be null.
struct Matrix {
    const void* weights;
    const float *scales, *bias;
};

// out[row][o] = x[row] . weight[o] * scale[o] + bias[o] for a few outputs. A row's sum has the same order, and so the same
// bits, whatever the number of rows.
template <int ROWS, int HERE, class Weight>
inline void few_products(const float* x, const Matrix& matrix, const Weight* weight, float* out, long out_row, long inputs, long o,
                         bool fetch) {
    vec sums[HERE][ROWS] = {};
    for (long i = 0; i < inputs; i += LANES) {
        vec values[ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) values[row] = load(x + row * inputs + i);
#pragma GCC unroll 8
        for (int k = 0; k < HERE; ++k) {
            const Weight* here = weight + k * inputs + i;
            if (fetch) __builtin_prefetch(reinterpret_cast<const char*>(here) + AHEAD);
            const vec w = load(here);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) sums[k][row] += w * values[row];
        }
    }
    for (int k = 0; k < HERE; ++k)
        for (int row = 0; row < ROWS; ++row)
            out[row * out_row + o + k] = total_of(sums[k][row]) * (matrix.scales ? matrix.scales[o + k] : 1.0f) +
                                         (matrix.bias ? matrix.bias[o + k] : 0.0f);
}

template <int HERE, class Weight>
void products_of_rows(long rows, const float* x, const Matrix& matrix, float* out, long out_row, long inputs, long o) {
    const Weight* weight = static_cast<const Weight*>(matrix.weights) + o * inputs;
    for (long row = 0; row < rows; row += TOGETHER) {
        const auto some = [&](auto count) {
            few_products<count, HERE>(x + row * inputs, matrix, weight, out + row * out_row, out_row, inputs, o, !row);
        };
        switch (std::min<long>(TOGETHER, rows - row)) {
            case 1: some(std::integral_constant<int, 1>()); break;
            case 2: some(std::integral_constant<int, 2>()); break;
            case 3: some(std::integral_constant<int, 3>()); break;
            case 4: some(std::integral_constant<int, std::min(4, TOGETHER)>()); break;
            case 5: some(std::integral_constant<int, std::min(5, TOGETHER)>()); break;
            default: some(std::integral_constant<int, TOGETHER>());
        }
    }
}

template <class Weight>
void products(long rows, const float* x, const Matrix& matrix, float* out, long out_row, long inputs, long outputs,
              int threads) {
    threads = inputs * outputs <= SMALL ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o += OUTPUTS)
        if (o + OUTPUTS <= outputs)
            products_of_rows<OUTPUTS, Weight>(rows, x, matrix, out, out_row, inputs, o);
        else
            for (long last = o; last < outputs; ++last)
                products_of_rows<1, Weight>(rows, x, matrix, out, out_row, inputs, last);
}

}  // namespace
