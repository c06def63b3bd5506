// What all attention kernels share: products of small matrices that stay in the core's cache, and scratch memory.
#pragma once

#include <cstdlib>

#include "vectors.h"

namespace {

constexpr int ROWS = LANES == 16 ? 48 : 32;  // queries of a block: whole tiles and whole vectors
constexpr int PANEL = TILE_VECTORS * LANES;  // columns that one tile of a product covers
constexpr float LN2 = 0.69314718f, LOG2E = 1.44269504f;  // scores are powers of two, not of e
constexpr int DEPTH = 64;                    // rows of the right factor that stay in the first-level cache
static_assert(ROWS % TILE_ROWS == 0 && ROWS % LANES == 0);

// A tile of c (+)= a b, with a's element (i, k) at a[i * a_row + k * a_k].
template <int VECTORS, bool ADD>
inline void tile(long depth, const float* a, long a_row, long a_k, const float* b, long b_row, float* c, long c_row) {
    vec sums[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) sums[i][j] = ADD ? load(c + i * c_row + j * LANES) : vec{};
    for (long k = 0; k < depth; ++k) {
        vec right[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) right[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < TILE_ROWS; ++i) {
            const float left = a[i * a_row + k * a_k];
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) sums[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(c + i * c_row + j * LANES, sums[i][j]);
}

// Computes all rows of one panel of columns. `rows` is rounded up to whole tiles, and the buffers are that large.
template <int VECTORS, bool ADD>
inline void panel(long rows, long depth, const float* a, long a_row, long a_k, const float* b, long b_row, float* c,
                  long c_row) {
    for (long i = 0; i < rows; i += TILE_ROWS)
        tile<VECTORS, ADD>(depth, a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row);
}

template <bool ADD>
inline void panel(int vectors, long rows, long depth, const float* a, long a_row, long a_k, const float* b, long b_row,
                  float* c, long c_row) {
    switch (vectors) {
        case 1: return panel<1, ADD>(rows, depth, a, a_row, a_k, b, b_row, c, c_row);
        case 2: return panel<2, ADD>(rows, depth, a, a_row, a_k, b, b_row, c, c_row);
        case 3: return panel<3, ADD>(rows, depth, a, a_row, a_k, b, b_row, c, c_row);
        default: return panel<TILE_VECTORS, ADD>(rows, depth, a, a_row, a_k, b, b_row, c, c_row);
    }
}

// c [rows, width] += a [rows, depth] b [depth, width], b row by row; width a multiple of LANES.
void multiply_add(long rows, long depth, long width, const float* a, long a_row, long a_k, const float* b, float* c) {
    for (long first = 0; first < depth; first += DEPTH) {
        const long chunk = depth - first < DEPTH ? depth - first : DEPTH;
        for (long column = 0; column < width; column += PANEL) {
            const long columns = width - column < PANEL ? width - column : PANEL;
            panel<true>(columns / LANES, rows, chunk, a + first * a_k, a_row, a_k, b + first * width + column, width,
                        c + column, width);
        }
    }
}

// c [rows, columns] = a [rows, depth] times columns [first, first + columns) of a matrix kept as panels of
// PANEL columns ([panel][depth][PANEL]); first and columns are multiples of LANES.
void multiply_panels(long rows, long depth, const float* a, const float* panels, long first, long columns, float* c,
                     long c_row) {
    for (long column = first; column < first + columns;) {
        const long inside = column % PANEL, room = PANEL - inside, left = first + columns - column;
        const long take = left < room ? left : room;
        panel<false>(take / LANES, rows, depth, a, depth, 1, panels + column / PANEL * depth * PANEL + inside, PANEL,
                     c + column - first, c_row);
        column += take;
    }
}

// Copies the rows of x [count, width] to columns of panels. Columns after `count` become zero, up to a whole vector.
template <class T>
void to_panels(const T* x, long x_row, long count, long width, float* panels) {
    for (long column = 0; column < count; column += LANES) {
        const long present = count - column < LANES ? count - column : LANES;
        float* out = panels + column / PANEL * width * PANEL + column % PANEL;
        for (long h = 0; h < width; h += LANES) {
            vec square[LANES];
            for (long i = 0; i < LANES; ++i) square[i] = i < present ? load(x + (column + i) * x_row + h) : vec{};
            transpose_square(square);
            for (long i = 0; i < LANES; ++i) store(out + (h + i) * PANEL, square[i]);
        }
    }
}

// Scratch memory of one thread, carved into aligned pieces.
class Scratch {
  public:
    explicit Scratch(long floats) : memory_(static_cast<float*>(std::aligned_alloc(64, up(floats * 4, 64)))) {}
    ~Scratch() { std::free(memory_); }
    float* take(long floats) {
        float* piece = memory_ + used_;
        used_ += up(floats, 16);
        return piece;
    }

  private:
    float* memory_;
    long used_ = 0;
};

}  // namespace
