// Two-stream attention with memory on a CPU: queries of the content and of the predicted places over the same keys.
//
// As in attention.cpp, one (text, head) at a time stays in the core's cache, and no array of size queries x keys is
// written to memory. Which keys a query sees is decided here, by comparing each key's order with the most that the
// query sees. Scores by distance are the product of a block of queries with the encodings of all distances that the
// block needs; each query reads its row from the column that its place gives.
//
// Everything is float32. All results are independent of the number of threads.
//
// Names: B texts, L content tokens, Q queries of a text (content first), K keys (memory first), N heads, H head width,
// R = L + K distances. Sizes are in floats.

#include <climits>
#include <omp.h>

#include "relative.h"

namespace {

struct Streams {
    const float *q, *k, *v, *r;                                // [B, Q or K, N, H] with token strides; r [R, N, H]
    const float *content_bias, *position_bias, *segment_bias;  // [N, H]; segment_bias may be null
    const float* segment_embed;                                // [2, N, H]
    const int32_t *query_segments, *key_segments;              // [B, Q], [B, K]
    const int64_t* place;                                      // [B, Q]: from 0 to L - 1
    const int32_t *sees, *order;                               // [B, Q], [B, K]: a query sees orders up to `sees`
    long q_row, k_row, v_row;                                  // strides of tokens
    long texts, length, queries, keys, heads, width;
    uint32_t key, threshold;
    float dropout_scale;
    int threads;

    Noise noise() const { return {key, threshold, dropout_scale}; }
    long padded() const { return up(keys, LANES); }
    long origin() const { return 0; }
    long distances() const { return length + keys; }
    // Columns of distances: a row's last vectors may reach past the last distance.
    long columns() const { return up(length + padded() + 2 * LANES + TILE_ROWS, PANEL); }
    long band_row() const { return up(length + padded() + 2 * LANES, LANES); }  // the most that a block's row can need
};

// What is computed once for one text and head, and used by all its blocks of queries.
struct Both {
    const Streams& p;
    const float *r_panels, *r_rows;
    long n, b;
    const long padded;
    long block, count, tiled;        // the block's first query, its queries, and those in whole tiles
    long first, band, band_row;      // the first column of distances that the block reads, how many, and the stride
    float factor;                    // 1 / sqrt(H), times log2(e): scores are powers of two
    float *k_panels, *by_key, *by_distance, *q_content, *q_position, *by_segment;
    int32_t *orders, *segments;      // of the keys; behind the last one, an order that no query sees

    static long floats(const Streams& p) {
        const long keys = up(p.keys, PANEL);
        return keys * p.width + ROWS * (keys + p.band_row()) + 2 * ROWS * p.width + ROWS + 2 * keys + 256;
    }
    Both(const Streams& p, const float* r_panels, const float* r_rows, Scratch& scratch)
        : p(p), r_panels(r_panels), r_rows(r_rows), padded(p.padded()),
          factor(LOG2E / std::sqrt(float(p.width))) {
        const long keys = up(p.keys, PANEL);
        k_panels = scratch.take(keys * p.width);
        by_key = scratch.take(ROWS * keys);
        by_distance = scratch.take(ROWS * p.band_row());
        q_content = scratch.take(ROWS * p.width);
        q_position = scratch.take(ROWS * p.width);
        by_segment = scratch.take(ROWS);
        orders = reinterpret_cast<int32_t*>(scratch.take(keys));
        segments = reinterpret_cast<int32_t*>(scratch.take(keys));
    }

    void enter(long text, long head) {
        b = text, n = head;
        to_panels(p.k + b * p.keys * p.k_row + n * p.width, p.k_row, p.keys, p.width, k_panels);
        for (long j = 0; j < padded; ++j) {
            orders[j] = j < p.keys ? p.order[b * p.keys + j] : INT_MAX;
            segments[j] = p.segment_bias && j < p.keys ? p.key_segments[b * p.keys + j] : 0;
        }
    }
    long token(long i) const { return b * p.queries + block + i; }
    const float* query(long i) const { return p.q + token(i) * p.q_row + n * p.width; }
    uint32_t noise_row(long i) const { return uint32_t(token(i) * p.heads + n); }
    // The column where a query begins to read its scores by distance.
    long shift(long i) const { return p.length - long(p.place[token(i)]); }
    float* distances(long i) const { return by_distance + i * band_row + shift(i) - first; }

    // Choose the next block, which begins at query `from`: of the content, or of the predicted places.
    void choose(long from) {
        const long end = from < p.length ? p.length : p.queries;
        block = from, count = end - from < ROWS ? end - from : ROWS, tiled = up(count, TILE_ROWS);
        long low = shift(0), high = low;
        for (long i = 1; i < count; ++i) {
            const long mine = shift(i);
            low = mine < low ? mine : low, high = mine > high ? mine : high;
        }
        first = low / LANES * LANES, band = up(high + padded - first, LANES);
        band_row = band + LANES < p.band_row() ? band + LANES : p.band_row();
    }

    // Scores of the block, as powers of two, in by_key; minus infinity for keys that a query does not see.
    void scores() {
        for (long i = 0; i < tiled; ++i) {
            const float* q = i < count ? query(i) : nullptr;
            add_biases(p, n, q, factor, q_content + i * p.width, q_position + i * p.width);
            if (q) by_segment[i] = segment_score(p, n, q, factor);
        }
        multiply_panels(tiled, p.width, q_content, k_panels, 0, padded, by_key, padded);
        multiply_panels(tiled, p.width, q_position, r_panels + n * p.columns() * p.width, first, band, by_distance,
                        band_row);
        for (long i = 0; i < count; ++i) add_up(i);
    }

    // Which of LANES keys have another segment than the query.
    ints differs(int32_t mine, long j) const { return *reinterpret_cast<const loose_ints*>(segments + j) != mine; }
    void add_up(long i) const {
        float* row = by_key + i * padded;
        const float* distance = distances(i);
        const int32_t sees = p.sees[token(i)], mine = p.segment_bias ? p.query_segments[token(i)] : 0;
        for (long j = 0; j < padded; j += LANES) {
            vec score = load(row + j) + load(distance + j);
            if (p.segment_bias) score += where(differs(mine, j), all(by_segment[i]), vec{});
            const ints hidden = *reinterpret_cast<const loose_ints*>(orders + j) > sees;
            store(row + j, where(hidden, vec{} - INFINITY, score));
        }
    }
};

}  // namespace

extern "C" {

// Lengths of the two arrays that streams_forward and streams_backward share, in floats, both the same.
long streams_floats(const Streams* p) { return p->heads * p->columns() * p->width; }

// out [B, Q, N, H] and the logarithm (base 2) of each row's sum, log_sums [N, B, Q]: infinite where a query sees
// nothing, and then its output is zero.
void streams_forward(const Streams* problem, float* r_panels, float* r_rows, float* out, float* log_sums) {
    const Streams& p = *problem;
    arrange_distances(p, r_panels, r_rows);
    const Noise noise = p.noise();
#pragma omp parallel num_threads(p.threads)
    {
        Scratch scratch(Both::floats(p) + (up(p.keys, PANEL) + ROWS) * p.width + 64);
        Both both(p, r_panels, r_rows, scratch);
        float* values = scratch.take(up(p.keys, PANEL) * p.width);
        float* attended = scratch.take(ROWS * p.width);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < p.texts * p.heads; ++task) {
            both.enter(task / p.heads, task % p.heads);
            const long padded = both.padded, n = both.n;
            for (long j = 0; j < p.keys; ++j)
                std::memcpy(values + j * p.width, p.v + (both.b * p.keys + j) * p.v_row + n * p.width, p.width * 4);
            for (long block = 0; block < p.queries; block += both.count) {
                both.choose(block);
                both.scores();
                float inverse[ROWS];
                for (long i = 0; i < both.count; ++i) {
                    float* log_sum = log_sums + n * p.texts * p.queries + both.token(i);
                    inverse[i] = softmax_row(both.by_key + i * padded, padded, noise, both.noise_row(i), log_sum);
                }
                std::memset(attended, 0, both.tiled * p.width * 4);
                multiply_add(both.tiled, p.keys, p.width, both.by_key, padded, 1, values, attended);
                for (long i = 0; i < both.count; ++i) {
                    float* to = out + (both.token(i) * p.heads + n) * p.width;
                    for (long h = 0; h < p.width; ++h) to[h] = attended[i * p.width + h] * inverse[i];
                }
            }
        }
    }
}

// Gradients. grad_q, grad_k, grad_v: with the strides of q, k, v. grad_r: [R, N, H]. grad_biases: [4, N, H], for
// content, position, segment bias, and "another segment" (minus that is "same segment").
// partial_r: [groups, N, columns, H] and partial_biases: [groups, N, 4, H], zeroed by the caller: texts are
// divided among groups. Each group adds its texts in order, and then the groups are added in order.
void streams_backward(const Streams* problem, const float* r_panels, const float* r_rows, const float* grad_out,
                      const float* log_sums, float* grad_q, float* grad_k, float* grad_v, float* grad_r,
                      float* grad_biases, long groups, float* partial_r, float* partial_biases) {
    const Streams& p = *problem;
    const Noise noise = p.noise();
    const long columns = p.columns(), model = p.heads * p.width, H = p.width;
#pragma omp parallel num_threads(p.threads)
    {
        const long keys = up(p.keys, PANEL), key_rows = keys + TILE_ROWS;
        Scratch scratch(Both::floats(p) + keys * H * 2 + 2 * key_rows * H + ROWS * keys + 3 * ROWS * H + 256);
        Both both(p, r_panels, r_rows, scratch);
        float* k_rows = scratch.take(keys * H);
        float* v_panels = scratch.take(keys * H);
        float* dk = scratch.take(key_rows * H);
        float* dv = scratch.take(key_rows * H);
        float* dweights = scratch.take(ROWS * keys);
        float* dout = scratch.take(ROWS * H);
        float* dq_content = scratch.take(ROWS * H);
        float* dq_position = scratch.take(ROWS * H);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < groups * p.heads; ++task) {
            const long group = task / p.heads, n = task % p.heads;
            float* dr = partial_r + (group * p.heads + n) * columns * H;
            float* dbias = partial_biases + (group * p.heads + n) * 4 * H;
            for (long b = group; b < p.texts; b += groups) {
                both.enter(b, n);
                const long padded = both.padded;
                for (long j = 0; j < p.keys; ++j)
                    std::memcpy(k_rows + j * H, p.k + (b * p.keys + j) * p.k_row + n * H, H * 4);
                to_panels(p.v + b * p.keys * p.v_row + n * H, p.v_row, p.keys, H, v_panels);
                std::memset(dk, 0, key_rows * H * 4), std::memset(dv, 0, key_rows * H * 4);
                for (long block = 0; block < p.queries; block += both.count) {
                    both.choose(block);
                    const long count = both.count, rows = both.tiled, band = both.band, band_row = both.band_row;
                    both.scores();
                    std::memset(dout, 0, rows * H * 4);
                    for (long i = 0; i < count; ++i)
                        std::memcpy(dout + i * H, grad_out + both.token(i) * model + n * H, H * 4);
                    multiply_panels(rows, H, dout, v_panels, 0, padded, dweights, padded);
                    for (long i = count; i < rows; ++i) {
                        std::memset(both.by_distance + i * band_row, 0, band_row * 4);
                        std::memset(both.by_key + i * padded, 0, padded * 4);
                    }
                    float by_segment[ROWS];
                    for (long i = 0; i < count; ++i) {
                        float *row = both.by_key + i * padded, *dweight = dweights + i * padded;
                        const float log_sum = log_sums[n * p.texts * p.queries + both.token(i)];
                        const int32_t mine = p.segment_bias ? p.query_segments[both.token(i)] : 0;
                        float* distance = both.distances(i);
                        for (float* start = both.by_distance + i * band_row; start < distance; ++start) *start = 0;
                        by_segment[i] = softmax_row_gradient(
                            row, dweight, distance, padded, log_sum, noise, both.noise_row(i),
                            [&](long j, vec v) {
                                return p.segment_bias ? where(both.differs(mine, j), v, vec{}) : vec{};
                            });
                        float* end = both.by_distance + (i + 1) * band_row;
                        for (float* rest = distance + padded; rest < end; ++rest) *rest = 0;
                    }
                    // From here on by_key holds the scores' gradients, dweights the weights after dropout.
                    multiply_add(up(p.keys, TILE_ROWS), rows, H, dweights, 1, padded, dout, dv);
                    multiply_add(up(p.keys, TILE_ROWS), rows, H, both.by_key, 1, padded, both.q_content, dk);
                    multiply_add(up(band, TILE_ROWS), rows, H, both.by_distance, 1, band_row, both.q_position,
                                 dr + both.first * H);
                    std::memset(dq_content, 0, rows * H * 4), std::memset(dq_position, 0, rows * H * 4);
                    multiply_add(rows, p.keys, H, both.by_key, padded, 1, k_rows, dq_content);
                    multiply_add(rows, band, H, both.by_distance, band_row, 1,
                                 r_rows + (n * columns + both.first) * H, dq_position);
                    for (long i = 0; i < count; ++i)
                        query_gradient(p, n, both.query(i), dq_content + i * H, dq_position + i * H, by_segment[i],
                                       grad_q + both.token(i) * p.q_row + n * H, dbias);
                }
                for (long j = 0; j < p.keys; ++j) {
                    float* to_k = grad_k + (b * p.keys + j) * p.k_row + n * H;
                    float* to_v = grad_v + (b * p.keys + j) * p.v_row + n * H;
                    for (long h = 0; h < H; ++h) to_k[h] = dk[j * H + h] * LN2, to_v[h] = dv[j * H + h];
                }
            }
        }
        add_groups(p, groups, partial_r, partial_biases, grad_r, grad_biases);
    }
}

}  // extern "C"
