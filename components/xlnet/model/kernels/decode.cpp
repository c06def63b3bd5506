// One pass of generation: a few rows through all layers, with kept keys and values, and the logits of the last row.
//
// A token costs its weights' way from memory once: each weight is loaded for all rows together. Widths must be
// multiples of 16. Shapes: see generation/decoder.py.

#include <omp.h>

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int MOST_ROWS = 3, OUTPUTS = 4;
constexpr long SMALL = 1 << 16;  // weights up to which one thread is fastest

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

struct Layer {
    const float *qkv, *o, *r, *biases;
    const float *norm, *norm_bias, *first, *first_bias, *second, *second_bias, *last_norm, *last_norm_bias;
    float *keys, *values;
};

struct Pass {
    float *x, *scratch, *logits;
    const float *table, *table_bias, *mask;
    const unsigned char* hidden;  // for each key: its token is not known; null: all are known
    const long *ids, *slots;      // of each token of the content: what it is, and where its key is kept
    const long* shifts;           // of each row: its distance from the highest place
    long rows, layers, width, heads, head, inner, vocabulary;
    long kept_slots, distances, first, end, column;
    float eps;
    int threads;
};

// out[row][o] = x[row] . weight[o] + bias[o], in groups of outputs.
template <int ROWS>
void products(const float* x, const float* weight, const float* bias, float* out, long inputs, long outputs, int threads) {
    threads = inputs * outputs <= SMALL ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long o = 0; o < outputs; o += OUTPUTS) {
        const int here = int(std::min<long>(OUTPUTS, outputs - o));
        vec sums[OUTPUTS][ROWS] = {};
        if (here == OUTPUTS) {
            for (long i = 0; i < inputs; i += LANES) {
                vec values[ROWS];
                for (int row = 0; row < ROWS; ++row) values[row] = load(x + row * inputs + i);
                for (int k = 0; k < OUTPUTS; ++k) {
                    const vec w = load(weight + (o + k) * inputs + i);
                    for (int row = 0; row < ROWS; ++row) sums[k][row] += w * values[row];
                }
            }
        } else {
            for (int k = 0; k < here; ++k)
                for (long i = 0; i < inputs; i += LANES)
                    for (int row = 0; row < ROWS; ++row)
                        sums[k][row] += load(weight + (o + k) * inputs + i) * load(x + row * inputs + i);
        }
        for (int k = 0; k < here; ++k)
            for (int row = 0; row < ROWS; ++row)
                out[row * outputs + o + k] = total_of(sums[k][row]) + (bias ? bias[o + k] : 0.0f);
    }
}

void project(long rows, const float* x, const float* weight, const float* bias, float* out, long inputs, long outputs,
             int threads) {
    switch (rows) {
        case 1: products<1>(x, weight, bias, out, inputs, outputs, threads); break;
        case 2: products<2>(x, weight, bias, out, inputs, outputs, threads); break;
        default: products<3>(x, weight, bias, out, inputs, outputs, threads);
    }
}

// x = layer norm of x + added.
void add_norm(float* x, const float* added, const float* weight, const float* bias, long rows, long width, float eps) {
    for (long row = 0; row < rows; ++row, x += width, added += width) {
        vec total = {};
        for (long i = 0; i < width; i += LANES) {
            const vec v = load(x + i) + load(added + i);
            store(x + i, v);
            total += v;
        }
        const float mean = sum(total) / float(width);
        vec squares = {};
        for (long i = 0; i < width; i += LANES) {
            const vec v = load(x + i) - mean;
            squares += v * v;
        }
        const float scale = 1.0f / std::sqrt(sum(squares) / float(width) + eps);
        for (long i = 0; i < width; i += LANES)
            store(x + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
    }
}

// Scores of LANES keys. Keys and distances lie along rows, so that no vector has to be summed up.
inline vec scores_of(const float* content, const float* position, const float* k, const float* r, long slots,
                     long distances, long head) {
    vec by_content = {}, by_position = {};
    for (long h = 0; h < head; ++h) {
        by_content += content[h] * load(k + h * slots);
        by_position += position[h] * load(r + h * distances);
    }
    return by_content + by_position;
}

// One head of one row: out[head width] = softmax of its scores, times the values.
void attend(const Pass& p, const Layer& layer, long row, long n, const float* query, float* scores, float* out) {
    const long keys = p.end - p.first, head = p.head;
    const float scale = 1.44269504f / std::sqrt(float(head));  // log2(e): the powers below are of 2
    float content[1024], position[1024];
    const float *content_bias = layer.biases + n * head, *position_bias = layer.biases + (p.heads + n) * head;
    for (long h = 0; h < head; ++h) {
        content[h] = (query[h] + content_bias[h]) * scale;
        position[h] = (query[h] + position_bias[h]) * scale;
    }
    const float* k = layer.keys + n * head * p.kept_slots + p.first;
    const float* v = layer.values + (n * p.kept_slots + p.first) * head;
    const float* r = layer.r + n * head * p.distances + p.column + p.shifts[row];
    if (keys < LANES) {
        for (long j = 0; j < keys; ++j) {
            scores[j] = 0;
            for (long h = 0; h < head; ++h)
                scores[j] += content[h] * k[h * p.kept_slots + j] + position[h] * r[h * p.distances + j];
        }
    } else {
        for (long j = 0; j < keys; j += LANES) {
            const long at = std::min(j, keys - LANES);  // the last vector may overlap the one before
            store(scores + at, scores_of(content, position, k + at, r + at, p.kept_slots, p.distances, head));
        }
    }
    for (long j = 0; p.hidden && j < keys; ++j) scores[j] = p.hidden[j] ? -INFINITY : scores[j];
    for (long j = keys; j < up(keys, LANES); ++j) scores[j] = -INFINITY;
    vec greatest = all(-INFINITY);
    for (long j = 0; j < keys; j += LANES) greatest = where(load(scores + j) > greatest, load(scores + j), greatest);
    const float best = largest(greatest);
    vec whole = {};
    for (long j = 0; j < keys; j += LANES) {
        const vec difference = load(scores + j) - best;
        const vec share = exp2_nonpositive(where(difference < -200.0f, all(-200.0f), difference));
        store(scores + j, share);
        whole += share;
    }
    const float inverse = 1.0f / sum(whole);
    for (long h = 0; h < head; h += LANES) {
        vec totals[4] = {};  // several, as each addition waits for the one before
        long j = 0;
        for (; j + 4 <= keys; j += 4)
            for (int one = 0; one < 4; ++one) totals[one] += scores[j + one] * load(v + (j + one) * head + h);
        for (; j < keys; ++j) totals[0] += scores[j] * load(v + j * head + h);
        store(out + h, (totals[0] + totals[1] + totals[2] + totals[3]) * inverse);
    }
}

}  // namespace

extern "C" {

long decode_most_rows() { return MOST_ROWS; }

// Floats of scratch memory that a pass over so many keys needs.
long decode_scratch(long width, long heads, long head, long inner, long keys) {
    return MOST_ROWS * (4 * heads * head + width + inner + heads * up(keys + 1, 16));
}

void decode(const Layer* layers, const Pass* pass) {
    const Pass& p = *pass;
    const long all_heads = p.heads * p.head, padded = up(p.end - p.first + 1, 16);
    float* qkv = p.scratch;
    float* attended = qkv + MOST_ROWS * 3 * all_heads;
    float* added = attended + MOST_ROWS * all_heads;
    float* inner = added + MOST_ROWS * p.width;
    float* scores = inner + MOST_ROWS * p.inner;
    for (long row = 0; row < p.rows; ++row)
        std::memcpy(p.x + row * p.width, row + 1 < p.rows ? p.table + p.ids[row] * p.width : p.mask,
                    p.width * sizeof(float));
    const int threads = (p.end - p.first) * all_heads * p.rows <= SMALL ? 1 : p.threads;
    for (long number = 0; number < p.layers; ++number) {
        const Layer& layer = layers[number];
        project(p.rows, p.x, layer.qkv, nullptr, qkv, p.width, 3 * all_heads, p.threads);
        for (long row = 0; row + 1 < p.rows; ++row)
            for (long n = 0; n < p.heads; ++n) {
                const float *k = qkv + (row * 3 + 1) * all_heads + n * p.head, *v = k + all_heads;
                for (long h = 0; h < p.head; ++h) layer.keys[(n * p.head + h) * p.kept_slots + p.slots[row]] = k[h];
                std::memcpy(layer.values + (n * p.kept_slots + p.slots[row]) * p.head, v, p.head * sizeof(float));
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long one = 0; one < p.rows * p.heads; ++one) {
            const long row = one / p.heads, n = one % p.heads;
            attend(p, layer, row, n, qkv + row * 3 * all_heads + n * p.head, scores + one * padded,
                   attended + row * all_heads + n * p.head);
        }
        project(p.rows, attended, layer.o, nullptr, added, all_heads, p.width, p.threads);
        add_norm(p.x, added, layer.norm, layer.norm_bias, p.rows, p.width, p.eps);
        project(p.rows, p.x, layer.first, layer.first_bias, inner, p.width, p.inner, p.threads);
        for (long i = 0; i < p.rows * p.inner; i += LANES) {
            const vec v = load(inner + i);
            store(inner + i, v * (0.5f + 0.5f * erf_of(v * 0.70710678f)));
        }
        project(p.rows, inner, layer.second, layer.second_bias, added, p.inner, p.width, p.threads);
        add_norm(p.x, added, layer.last_norm, layer.last_norm_bias, p.rows, p.width, p.eps);
    }
    project(1, p.x + (p.rows - 1) * p.width, p.table, p.table_bias, p.logits, p.width, p.vocabulary, p.threads);
}

}
