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

// Adds to the lower halves of each block of 2 * STEP lanes the upper ones, of two vectors at once.
template <int STEP>
inline void add_halves(vec* x) {
    using All = std::make_integer_sequence<int, LANES>;
#pragma GCC unroll 8
    for (int i = 0; i < STEP; ++i)
        x[i] = exchange<STEP, false>(x[i], x[i + STEP], All{}) + exchange<STEP, true>(x[i], x[i + STEP], All{});
}

// The sums of the elements of LANES vectors, as one vector. Changes x.
inline vec sums_of(vec* x) {
    if constexpr (LANES > 8) add_halves<8>(x);
    if constexpr (LANES > 4) add_halves<4>(x);
    add_halves<2>(x), add_halves<1>(x);
    return x[0];
}

enum Kind : long { FLOAT32, BFLOAT16, INT8 };  // of weights

// Weights [outputs, inputs]. A row of int8 is to be multiplied by its scale; scales and bias may be null.
struct Matrix {
    const void* weights;
    const float *scales, *bias;
};

constexpr int up_to_vectors(int floats) { return (floats + LANES - 1) / LANES * LANES; }

// out[row][o] = x[row] . weight[o] * scale[o] + bias[o] for a few outputs. A row's sum has the same order, and so the
// same bits, whatever the number of rows.
template <int ROWS, int HERE, class Weight>
inline void few_products(const float* x, const Matrix& matrix, const Weight* weight, float* out, long out_row,
                         long inputs, long o, bool fetch) {
    vec sums[up_to_vectors(HERE * ROWS)] = {};
    for (long i = 0; i < inputs; i += LANES) {
        vec values[ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) values[row] = load(x + row * inputs + i);
#pragma GCC unroll 8
        for (int k = 0; k < HERE; ++k) {
            const Weight* here = weight + k * inputs + i;
            if (fetch) __builtin_prefetch(here + HERE * inputs, 0, 2);
            const vec w = load(here);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) sums[k * ROWS + row] += w * values[row];
        }
    }
    float totals[up_to_vectors(HERE * ROWS)];
#pragma GCC unroll 8
    for (int first = 0; first < HERE * ROWS; first += LANES) store(totals + first, sums_of(sums + first));
    for (int k = 0; k < HERE; ++k)
        for (int row = 0; row < ROWS; ++row)
            out[row * out_row + o + k] = totals[k * ROWS + row] * (matrix.scales ? matrix.scales[o + k] : 1.0f) +
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
