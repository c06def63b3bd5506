// Products of float32 matrices on AMX, the matrix unit of some Intel processors, which multiplies bfloat16.
//
// Each number is the sum of three bfloat16 numbers, whose 8 bits each hold all 24 bits of its significand. Of the nine
// products of the parts of two numbers, the six largest are added up in float32; the others are below 2^-24 of the
// whole. Source: Henry, Tang & Heinecke 2019 (Leveraging the bfloat16 artificial intelligence datatype for
// higher-precision computations). Measured on a Xeon, the error is half of MKL's.
//
// The left factor is split once, DEPTH of its columns at a time. A thread splits DEPTH rows of up to WIDTH columns of
// the right factor, which stay in the core's second-level cache, and multiplies them by SIDE rows of the left factor at a
// time. Results are independent of the number of threads.

#include "vectors.h"

#if defined(__AVX512BW__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#define ON_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace {

constexpr long STEP = 32;              // depth of a tile
constexpr long SIDE = 32;              // rows and columns of a block: two tiles each way
constexpr long TILE = 16 * STEP;       // bfloat16 numbers of a tile
constexpr long PARTS = 3;
constexpr long DEPTH = 768, WIDTH = 256;  // measured: the best of several
constexpr long STEP_SIZE = PARTS * 2 * TILE;  // of one step of a block's factor: for each part, two tiles

// Element (i, j) is at[i * row + j * column]; one of the strides is 1, and that dimension is a multiple of 16.
struct Matrix {
    const float* at;
    long row, column;
};

// Loads 16 x 16 elements from (i, j) on, as rows. What is beyond `rows` and `columns` more becomes zero.
inline void load_block(const Matrix& m, long i, long j, long rows, long columns, vec out[16]) {
    const float* from = m.at + i * m.row + j * m.column;
    const bool across = m.column != 1;
    const long stride = across ? m.column : m.row, there = rows <= 0 || columns <= 0 ? 0 : across ? columns : rows;
    if (there >= 16) {
#pragma GCC unroll 16
        for (long r = 0; r < 16; ++r) out[r] = load(from + r * stride);
    } else {
        for (long r = 0; r < 16; ++r) out[r] = r < there ? load(from + r * stride) : vec{};
    }
    if (across) transpose_square(out);
}

// The three bfloat16 numbers whose sum is x, each as the upper half of a word. What the first two leave of x has at most
// 8 bits, so the last needs no rounding, and a nan stays one.
inline void split(vec x, words parts[PARTS]) {
    for (long p = 0; p < PARTS; ++p) {
        std::memcpy(&parts[p], &x, 64);
        if (p < PARTS - 1) parts[p] += 0x8000u;
        parts[p] &= 0xFFFF0000u;
        vec part;
        std::memcpy(&part, &parts[p], 64);
        x -= part;
    }
}

// Writes the parts of two rows of 16 numbers as 16 pairs of bfloat16, one for each part; parts are 2 * TILE apart.
inline void split_pair(vec low, vec high, uint16_t* out) {
    words a[PARTS], b[PARTS];
    split(low, a), split(high, b);
    for (long p = 0; p < PARTS; ++p) _mm512_store_si512(out + p * 2 * TILE, (__m512i)(a[p] >> 16 | b[p]));
}

// Writes a tile for each part of two blocks of 16 x 16 elements: that at (i, j), and the one below it or, if `beside`,
// to its right. A row of the tile holds the pairs of the blocks' rows. What is beyond `rows` and `columns` more is zero.
inline void split_blocks(const Matrix& m, long i, long j, long rows, long columns, bool beside, uint16_t* out) {
    const long down = beside ? 0 : 16, right = 16 - down;
    if (m.column == 1 && rows >= 16 + down && columns >= 16 + right) {
        const float *from = m.at + i * m.row + j, *other = from + down * m.row + right;
        for (long r = 0; r < 16; ++r) split_pair(load(from + r * m.row), load(other + r * m.row), out + r * STEP);
        return;
    }
    vec low[16], high[16];
    load_block(m, i, j, rows, columns, low);
    load_block(m, i + down, j + right, rows - down, columns - right, high);
    for (long r = 0; r < 16; ++r) split_pair(low[r], high[r], out + r * STEP);
}

// Rows [i, i + SIDE) of the left factor, depths [k, k + depth): [step][part][2] tiles.
void split_left(const Matrix& x, long i, long rows, long k, long depth, uint16_t* out) {
    for (long d = 0; d < depth; d += STEP, out += STEP_SIZE)
        for (long half = 0; half < 2; ++half)
            split_blocks(x, i + half * 16, k + d, rows - half * 16, depth - d, true, out + half * TILE);
}

// Columns [j, j + columns) of the right factor: [SIDE columns][step][part][2] tiles.
void split_right(const Matrix& w, long k, long depth, long j, long columns, uint16_t* out) {
    for (long c = 0; c < columns; c += SIDE)
        for (long d = 0; d < depth; d += STEP, out += STEP_SIZE)
            for (long half = 0; half < 2; ++half)
                split_blocks(w, k + d, j + c + half * 16, depth - d, 16, false, out + half * TILE);
}

// Multiplies the tiles in 4 and 5, one above the other, by those in 6 and 7, side by side.
ON_AMX inline void multiply_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

ON_AMX inline void load_left(const uint16_t* a, long part) {
    _tile_loadd(4, a + part * 2 * TILE, 64);
    _tile_loadd(5, a + (part * 2 + 1) * TILE, 64);
}
ON_AMX inline void load_right(const uint16_t* b, long part) {
    _tile_loadd(6, b + part * 2 * TILE, 64);
    _tile_loadd(7, b + (part * 2 + 1) * TILE, 64);
}

// out [SIDE, SIDE] = the product of blocks, small terms first.
ON_AMX void multiply_block(const uint16_t* a, const uint16_t* b, long steps, float* out) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long s = 0; s < steps; ++s, a += STEP_SIZE, b += STEP_SIZE) {
        load_left(a, 2), load_right(b, 0), multiply_tiles();
        load_left(a, 1), multiply_tiles();
        load_right(b, 1), multiply_tiles();
        load_left(a, 0), multiply_tiles();
        load_right(b, 2), multiply_tiles();
        load_right(b, 0), multiply_tiles();
    }
    _tile_stored(0, out, SIDE * 4);
    _tile_stored(1, out + 16, SIDE * 4);
    _tile_stored(2, out + 16 * SIDE, SIDE * 4);
    _tile_stored(3, out + 16 * SIDE + 16, SIDE * 4);
}

// The tiles' configuration: all of 16 rows of 64 bytes. At the end, that of oneDNN, which remembers its own, is back.
class Tiles {
  public:
    ON_AMX Tiles() {
        Configuration ours;
        ours.palette = 1;
        for (int i = 0; i < 8; ++i) ours.bytes[i] = 64, ours.rows[i] = 16;
        in_memory();
        _tile_storeconfig(&before_);
        _tile_loadconfig(&ours);
        in_memory();
    }
    ON_AMX ~Tiles() {
        if (before_.palette)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }

  private:
    struct alignas(64) Configuration {
        uint8_t palette = 0, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } before_;
    // GCC believes that these instructions read and write 8 bytes.
    static void in_memory() { __asm__ volatile("" ::: "memory"); }
};

// Memory of one thread, which the next product uses again.
class Buffer {
  public:
    ~Buffer() { std::free(memory_); }
    uint16_t* get(long numbers) {
        if (numbers > numbers_) {
            std::free(memory_);
            memory_ = static_cast<uint16_t*>(std::aligned_alloc(64, up(numbers * 2, 64))), numbers_ = numbers;
        }
        return memory_;
    }

  private:
    uint16_t* memory_ = nullptr;
    long numbers_ = 0;
};
thread_local Buffer left_buffer, right_buffer;

void prefetch_block(const float* out, long out_row, long rows) {
    for (long i = 0; i < rows; ++i)
        for (long j = 0; j < SIDE; j += LANES) __builtin_prefetch(out + i * out_row + j, 1);
}

// Adds a block to out; or writes it, plus bias, if it is the first of its depth. Applies GELU if asked.
void add_block(const float* block, long rows, const float* bias, float* out, long out_row, bool first, bool with_gelu) {
    for (long i = 0; i < rows; ++i)
        for (long j = 0; j < SIDE; j += LANES) {
            vec v = load(block + i * SIDE + j);
            if (!first)
                v += load(out + i * out_row + j);
            else if (bias)
                v += load(bias + j);
            store(out + i * out_row + j, with_gelu ? v * normal_cdf(v) : v);
        }
}

}  // namespace

extern "C" {

// Whether Linux lets this process use the tiles.
int amx_ready() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

// out [rows, width] = x [rows, depth] w [depth, width] + bias [width], then GELU if asked; bias may be null.
// The strides are those of struct Matrix. width is a multiple of SIDE, depth of 16 unless it is strided in both factors.
void amx_product(const float* x, long x_row, long x_column, const float* w, long w_row, long w_column, const float* bias,
                 float* out, long rows, long depth, long width, int with_gelu, int threads) {
    const Matrix left{x, x_row, x_column}, right{w, w_row, w_column};
    const long blocks = (width + WIDTH - 1) / WIDTH;
    const long wanted = std::max(1L, std::min((2 * threads + blocks - 1) / blocks, rows / 256));
    const long groups = threads == 1 ? 1 : wanted, group = up((rows + groups - 1) / groups, SIDE);
    uint16_t* left_parts = left_buffer.get(up(rows, SIDE) / SIDE * (up(std::min(depth, DEPTH), STEP) / STEP) * STEP_SIZE);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        uint16_t* right_parts = right_buffer.get(WIDTH * DEPTH * PARTS);
        alignas(64) float block[SIDE * SIDE];
        for (long k = 0; k < depth; k += DEPTH) {
            const long part = std::min(DEPTH, depth - k), size = (part + STEP - 1) / STEP * STEP_SIZE;
#pragma omp for
            for (long i = 0; i < rows; i += SIDE)
                split_left(left, i, std::min(SIDE, rows - i), k, part, left_parts + i / SIDE * size);
#pragma omp for schedule(dynamic)
            for (long task = 0; task < blocks * groups; ++task) {
                const long j = task % blocks * WIDTH, columns = std::min(WIDTH, width - j);
                const long start = task / blocks * group, end = std::min(rows, start + group);
                if (start < end) split_right(right, k, part, j, columns, right_parts);
                for (long i = start; i < end; i += SIDE) {
                    const long count = std::min(SIDE, end - i);
                    for (long c = 0; c < columns; c += SIDE) {
                        float* to = out + i * width + j + c;
                        prefetch_block(to, width, count);
                        multiply_block(left_parts + i / SIDE * size, right_parts + c / SIDE * size, size / STEP_SIZE, block);
                        add_block(block, count, bias ? bias + j + c : nullptr, to, width, k == 0,
                                  with_gelu && k + part == depth);
                    }
                }
            }
        }
    }
}

}  // extern "C"

#else

extern "C" int amx_ready() { return 0; }

#endif
