// Relative attention over packed texts on a CPU.
//
// Attention works on one (text, head) at a time: its keys, values and distances stay in the core's
// cache while it computes blocks of ROWS queries. No array of size length x length is written to memory. The
// backward pass recomputes what it needs (after Dao 2023, FlashAttention-2). Scores by distance are the
// product of the queries with the encodings of all distances; each query row reads it one column later.
//
// Everything is computed in float32; queries, keys, values, outputs and their gradients may be bfloat16 in memory (T).
// All results are independent of the number of threads.
//
// Names: T tokens, N heads, H head width, R = 2 * longest distances. Sizes are in floats.

#include <omp.h>

#include "relative.h"

namespace {

template <class T>
struct Problem {
    const T *q, *k, *v;                                          // [T, N, H] with token strides
    const float* r;                                                                              // [R, N, H]
    const float *content_bias, *position_bias, *segment_bias;    // [N, H]; segment_bias may be null
    const float* segment_embed;                                  // [2, N, H]
    const int32_t* segments;                                     // [T]
    const int32_t* offsets;                                      // [S + 1]
    long q_row, k_row, v_row;                                    // strides of tokens
    long texts, tokens, heads, width, longest;
    long queries;                                                // T, or S: only each text's last token asks
    uint32_t key, threshold;
    float dropout_scale;
    int threads;

    Noise noise() const { return {key, threshold, dropout_scale}; }
    // Distances are kept from the last block's first column on, so that each block's start is a whole vector.
    long origin() const { return longest + 1 - up(longest, ROWS); }
    long distances() const { return 2 * longest; }
    long columns() const { return up(2 * up(longest, ROWS) + ROWS, PANEL); }
    bool only_last() const { return queries != tokens; }
};

// What is computed once for one text and head, and used by all its blocks of queries.
template <class T>
struct Text {
    const Problem<T>& p;
    const float *r_panels, *r_rows;
    long n, first, length;
    long first_query, query_row;          // the first token that asks, and the row of its query
    long shift;                           // rows of the present block that come before its first query
    long padded, rows, band, band_row;    // length in whole vectors; rows of a block; scores by distance per row, and stride
    float factor;                         // 1 / sqrt(H), times log2(e): scores are powers of two
    float *k_panels, *by_key, *by_distance, *q_content, *q_position, *by_segment;

    static long floats(const Problem<T>& p) {
        const long keys = up(p.longest, PANEL);
        return keys * p.width + ROWS * (2 * keys + ROWS + LANES) + 2 * ROWS * p.width + ROWS + 256;
    }
    Text(const Problem<T>& p, const float* r_panels, const float* r_rows, Scratch& scratch)
        : p(p), r_panels(r_panels), r_rows(r_rows), factor(LOG2E / std::sqrt(float(p.width))) {
        const long keys = up(p.longest, PANEL);
        k_panels = scratch.take(keys * p.width);
        by_key = scratch.take(ROWS * keys);
        by_distance = scratch.take(ROWS * (keys + ROWS + LANES));  // the most that band_row can be
        q_content = scratch.take(ROWS * p.width);
        q_position = scratch.take(ROWS * p.width);
        by_segment = scratch.take(ROWS);
    }

    void enter(long s, long head) {
        n = head, first = p.offsets[s], length = p.offsets[s + 1] - first;
        first_query = p.only_last() ? length - 1 : 0, query_row = p.only_last() ? s : first;
        padded = up(length, LANES);
        rows = padded < ROWS ? padded : ROWS, band = padded + rows, band_row = band + LANES;
        to_panels(p.k + first * p.k_row + n * p.width, p.k_row, length, p.width, k_panels);
    }
    // The row of token i's query among all queries.
    long row(long i) const { return query_row + i - first_query; }
    const T* query(long i) const { return p.q + row(i) * p.q_row + n * p.width; }
    // Starts a block of queries at token i of the text; returns how many there are.
    long start(long i) {
        shift = i % rows;
        return length - i < rows - shift ? length - i : rows - shift;
    }
    uint32_t noise_row(long i) const { return uint32_t((first + i) * p.heads + n); }
    // The column where row i of a block begins to read its scores by distance: one before that of row i - 1.
    float* distances(long i) const { return by_distance + i * band_row + before(i); }
    long before(long i) const { return rows - 1 - shift - i; }
    // The block's first column among all distances.
    long first_distance(long block) const { return up(p.longest, ROWS) - rows - (block - shift); }
    // Only rows after the last query would read the first columns, so whole vectors of them are skipped.
    long skipped(long count) const { return (rows - shift - count) / LANES * LANES; }

    // Scores of queries [block, block + count), as powers of two, in by_key.
    void scores(long block, long count) {
        const long tiled = up(count, TILE_ROWS);
        for (long i = 0; i < tiled; ++i) {
            const T* q = i < count ? query(block + i) : nullptr;
            add_biases(p, n, q, factor, q_content + i * p.width, q_position + i * p.width);
            if (q) by_segment[i] = segment_score(p, n, q, factor);
        }
        multiply_panels(tiled, p.width, q_content, k_panels, 0, padded, by_key, padded);
        const long skip = skipped(count);
        multiply_panels(tiled, p.width, q_position, r_panels + n * p.columns() * p.width, first_distance(block) + skip,
                        band - skip, by_distance + skip, band_row);
        for (long i = 0; i < count; ++i) add_up(block + i, by_key + i * padded, distances(i), by_segment[i]);
    }

    // Which of LANES keys have another segment than the query.
    ints differs(long i, long j) const {
        ints ids{};
        if (j + LANES <= length)
            ids = *reinterpret_cast<const loose_ints*>(p.segments + first + j);
        else
            std::memcpy(&ids, p.segments + first + j, (length - j) * 4);
        return ids != p.segments[first + i];
    }
    void add_up(long i, float* row, const float* distance, float segment) const {
        if (p.segment_bias)
            for (long j = 0; j < padded; j += LANES)
                store(row + j, load(row + j) + load(distance + j) + where(differs(i, j), all(segment), vec{}));
        else
            for (long j = 0; j < padded; j += LANES) store(row + j, load(row + j) + load(distance + j));
        for (long j = length; j < padded; ++j) row[j] = -INFINITY;
    }
};

// out [queries, N, H] and the logarithm (base 2) of each row's sum, log_sums [N, queries].
template <class T>
void forward(const Problem<T>& p, float* r_panels, float* r_rows, T* out, float* log_sums) {
    arrange_distances(p, r_panels, r_rows);
    const Noise noise = p.noise();
#pragma omp parallel num_threads(p.threads)
    {
        const long keys = up(p.longest, PANEL);
        Scratch scratch(Text<T>::floats(p) + (keys + ROWS) * p.width + 64);
        Text<T> text(p, r_panels, r_rows, scratch);
        float* values = scratch.take(keys * p.width);
        float* attended = scratch.take(ROWS * p.width);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < p.texts * p.heads; ++task) {
            text.enter(task / p.heads, task % p.heads);
            for (long j = 0; j < text.length; ++j)
                copy_values(p.v + (text.first + j) * p.v_row + text.n * p.width, values + j * p.width, p.width);
            for (long block = text.first_query; block < text.length; block += text.rows) {
                const long count = text.start(block);
                text.scores(block, count);
                float inverse[ROWS];
                for (long i = 0; i < count; ++i) {
                    float* row = text.by_key + i * text.padded;
                    float* log_sum = log_sums + text.n * p.queries + text.row(block + i);
                    inverse[i] = softmax_row(row, text.padded, noise, text.noise_row(block + i), log_sum);
                }
                const long rows = up(count, TILE_ROWS);
                std::memset(attended, 0, rows * p.width * 4);
                multiply_add(rows, text.length, p.width, text.by_key, text.padded, 1, values, attended);
                for (long i = 0; i < count; ++i) {
                    T* to = out + (text.row(block + i) * p.heads + text.n) * p.width;
                    for (long h = 0; h < p.width; h += LANES)
                        store(to + h, load(attended + i * p.width + h) * inverse[i]);
                }
            }
        }
    }
}

// Gradients. grad_q, grad_k, grad_v: with the strides of q, k, v. grad_r: [R, N, H]. grad_biases: [4, N, H], for
// content, position, segment bias, and "another segment" (minus that is "same segment").
// partial_r: [groups, N, columns, H] and partial_biases: [groups, N, 4, H], zeroed by the caller: texts are
// divided among groups. Each group adds its texts in order, and then the groups are added in order.
template <class T>
void backward(const Problem<T>& p, const float* r_panels, const float* r_rows, const T* grad_out, const float* log_sums,
              T* grad_q, T* grad_k, T* grad_v, float* grad_r, float* grad_biases, long groups, float* partial_r,
              float* partial_biases) {
    const Noise noise = p.noise();
    const long columns = p.columns(), model = p.heads * p.width, H = p.width;
#pragma omp parallel num_threads(p.threads)
    {
        const long keys = up(p.longest, PANEL), key_rows = keys + TILE_ROWS;
        Scratch scratch(Text<T>::floats(p) + keys * H * 2 + 2 * key_rows * H + ROWS * keys + 3 * ROWS * H + 256);
        Text<T> text(p, r_panels, r_rows, scratch);
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
            for (long s = group; s < p.texts; s += groups) {
                text.enter(s, n);
                const long length = text.length, padded = text.padded, band = text.band, band_row = text.band_row;
                for (long j = 0; j < length; ++j)
                    copy_values(p.k + (text.first + j) * p.k_row + n * H, k_rows + j * H, H);
                to_panels(p.v + text.first * p.v_row + n * H, p.v_row, length, H, v_panels);
                const long all_keys = up(length, TILE_ROWS);
                std::memset(dk, 0, all_keys * H * 4), std::memset(dv, 0, all_keys * H * 4);
                for (long block = text.first_query; block < length; block += text.rows) {
                    const long count = text.start(block);
                    const long rows = up(count, TILE_ROWS);
                    text.scores(block, count);
                    std::memset(dout, 0, rows * H * 4);
                    for (long i = 0; i < count; ++i)
                        copy_values(grad_out + text.row(block + i) * model + n * H, dout + i * H, H);
                    multiply_panels(rows, H, dout, v_panels, 0, padded, dweights, padded);
                    for (long i = count; i < rows; ++i) {
                        std::memset(text.by_distance + i * band_row, 0, band_row * 4);
                        std::memset(text.by_key + i * padded, 0, padded * 4);
                    }
                    float by_segment[ROWS];
                    for (long i = 0; i < count; ++i) {
                        float *row = text.by_key + i * padded, *dweight = dweights + i * padded;
                        const float log_sum = log_sums[n * p.queries + text.row(block + i)];
                        float* distance = text.distances(i);
                        std::memset(text.by_distance + i * band_row, 0, text.before(i) * 4);
                        by_segment[i] = softmax_row_gradient(
                            row, dweight, distance, padded, log_sum, noise, text.noise_row(block + i),
                            [&](long j, vec v) {
                                return p.segment_bias ? where(text.differs(block + i, j), v, vec{}) : vec{};
                            });
                        for (float* end = distance + padded; end < text.by_distance + (i + 1) * band_row; ++end) *end = 0;
                    }
                    // From here on by_key holds the scores' gradients, dweights the weights after dropout.
                    multiply_add(all_keys, rows, H, dweights, 1, padded, dout, dv);
                    multiply_add(all_keys, rows, H, text.by_key, 1, padded, text.q_content, dk);
                    const long skipped = text.before(count - 1);
                    const long near = text.first_distance(block) + skipped;
                    multiply_add(up(band - skipped, TILE_ROWS), rows, H, text.by_distance + skipped, 1, band_row,
                                 text.q_position, dr + near * H);
                    std::memset(dq_content, 0, rows * H * 4), std::memset(dq_position, 0, rows * H * 4);
                    multiply_add(rows, length, H, text.by_key, padded, 1, k_rows, dq_content);
                    multiply_add(rows, band - skipped, H, text.by_distance + skipped, band_row, 1,
                                 r_rows + (n * columns + near) * H, dq_position);
                    for (long i = 0; i < count; ++i)
                        query_gradient(p, n, text.query(block + i), dq_content + i * H, dq_position + i * H,
                                       by_segment[i], grad_q + text.row(block + i) * p.q_row + n * H, dbias);
                }
                for (long j = 0; j < length; ++j) {
                    T* to_k = grad_k + (text.first + j) * p.k_row + n * H;
                    for (long h = 0; h < H; h += LANES) store(to_k + h, load(dk + j * H + h) * LN2);
                    copy_values(dv + j * H, grad_v + (text.first + j) * p.v_row + n * H, H);
                }
            }
        }
        add_groups(p, groups, partial_r, partial_biases, grad_r, grad_biases);
    }
}

}  // namespace

extern "C" {

// Lengths of the two arrays that attention_forward and attention_backward share, in floats, both the same.
long distances_floats(const Problem<float>* p) { return p->heads * p->columns() * p->width; }

// Queries, keys, values, out and their gradients are bfloat16 if `halves`, else float32.
void attention_forward(const void* problem, float* r_panels, float* r_rows, void* out, float* log_sums, int halves) {
    if (halves)
        forward(*(const Problem<bf16>*)problem, r_panels, r_rows, (bf16*)out, log_sums);
    else
        forward(*(const Problem<float>*)problem, r_panels, r_rows, (float*)out, log_sums);
}

void attention_backward(const void* problem, const float* r_panels, const float* r_rows, const void* grad_out,
                        const float* log_sums, void* grad_q, void* grad_k, void* grad_v, float* grad_r,
                        float* grad_biases, long groups, float* partial_r, float* partial_biases, int halves) {
    if (halves)
        backward(*(const Problem<bf16>*)problem, r_panels, r_rows, (const bf16*)grad_out, log_sums, (bf16*)grad_q,
                 (bf16*)grad_k, (bf16*)grad_v, grad_r, grad_biases, groups, partial_r, partial_biases);
    else
        backward(*(const Problem<float>*)problem, r_panels, r_rows, (const float*)grad_out, log_sums, (float*)grad_q,
                 (float*)grad_k, (float*)grad_v, grad_r, grad_biases, groups, partial_r, partial_biases);
}

}  // extern "C"
