// One pass of generation: a few rows through all layers, with kept keys and values, and the logits of the last row.
//
// A token costs its weights' way from memory once: each weight is loaded for all rows together. Matrices may therefore be
// kept in bfloat16 or int8; all sums are of float32. Widths must be multiples of 16. Shapes: see generation/decoder.py.

#include <omp.h>

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int MOST_ROWS = 3, OUTPUTS = 4, WIDEST_HEAD = 1024;
constexpr int BLOCK = LANES == 16 ? 4 : 2;  // vectors of keys whose scores are computed together
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

// Weights [outputs, inputs]. A row of int8 is to be multiplied by its scale; scales and bias may be null.
struct Matrix {
    const void* weights;
    const float *scales, *bias;
};

struct Layer {
    Matrix qkv, o, first, second;
    const float *r, *biases, *norm, *norm_bias, *last_norm, *last_norm_bias;
    float *keys, *values;
};

enum Kind : long { FLOAT32, BFLOAT16, INT8 };  // of all matrices

struct Pass {
    float *x, *scratch, *logits;
    const float *table, *mask;
    Matrix output;
    const unsigned char* hidden;  // for each key: its token is not known; null: all are known
    const long *ids, *slots;      // of each token of the content: what it is, and where its key is kept
    const long* shifts;           // of each row: its distance from the highest place
    long rows, layers, width, heads, head, inner, vocabulary;
    long kept_slots, distances, first, end, column, kind;
    float eps;
    int threads;
};

// The query of one head for each row, with the biases of content and position.
template <int ROWS>
struct Query {
    float content[ROWS][WIDEST_HEAD], position[ROWS][WIDEST_HEAD];
};

// Scores of one row are stored in whole blocks.
inline long padded_keys(long keys) { return up(keys, BLOCK * LANES); }

// out[row][o] = x[row] . weight[o] * scale[o] + bias[o], in groups of outputs.
template <int ROWS, class Weight>
void products(const float* x, const Matrix& matrix, float* out, long inputs, long outputs, int threads) {
    threads = inputs * outputs <= SMALL ? 1 : threads;
    const Weight* weight = static_cast<const Weight*>(matrix.weights);
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
                out[row * outputs + o + k] = total_of(sums[k][row]) * (matrix.scales ? matrix.scales[o + k] : 1.0f) +
                                             (matrix.bias ? matrix.bias[o + k] : 0.0f);
    }
}

template <class Weight>
void products_of_rows(long rows, const float* x, const Matrix& matrix, float* out, long inputs, long outputs,
                      int threads) {
    switch (rows) {
        case 1: products<1, Weight>(x, matrix, out, inputs, outputs, threads); break;
        case 2: products<2, Weight>(x, matrix, out, inputs, outputs, threads); break;
        default: products<3, Weight>(x, matrix, out, inputs, outputs, threads);
    }
}

void project(const Pass& p, long rows, const float* x, const Matrix& matrix, float* out, long inputs, long outputs) {
    switch (p.kind) {
        case INT8: products_of_rows<int8_t>(rows, x, matrix, out, inputs, outputs, p.threads); break;
        case BFLOAT16: products_of_rows<bf16>(rows, x, matrix, out, inputs, outputs, p.threads); break;
        default: products_of_rows<float>(rows, x, matrix, out, inputs, outputs, p.threads);
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

// The scores of a block of keys for all rows. Keys and distances lie along rows, so that no vector has to be summed up.
template <int ROWS>
void score_block(const Query<ROWS>& query, const float* k, const float* const* r, long slots, long distances,
                 long head, float* scores, long padded) {
    vec sums[ROWS][BLOCK] = {};
    for (long h = 0; h < head; ++h) {
        for (int block = 0; block < BLOCK; ++block) {
            const vec key = load(k + h * slots + block * LANES);
            __builtin_prefetch(k + h * slots + (BLOCK + block) * LANES);
            __builtin_prefetch(r[0] + h * distances + (BLOCK + block) * LANES);
            for (int row = 0; row < ROWS; ++row) {
                sums[row][block] += query.content[row][h] * key;
                sums[row][block] += query.position[row][h] * load(r[row] + h * distances + block * LANES);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int block = 0; block < BLOCK; ++block) store(scores + row * padded + block * LANES, sums[row][block]);
}

// Turns the scores of one row into powers of two, relative to the greatest; returns one divided by their sum.
float weigh(float* scores, long keys, long padded, const unsigned char* hidden) {
    for (long j = 0; hidden && j < keys; ++j) scores[j] = hidden[j] ? -INFINITY : scores[j];
    for (long j = keys; j < padded; ++j) scores[j] = -INFINITY;
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
    return 1.0f / sum(whole);
}

// out[row][h] = the sum of VECTORS vectors of values, in the shares of each row. Few vectors are summed up in several
// parts, as each addition waits for the one before.
template <int ROWS, int VECTORS>
void mix_values(const float* v, const float* scores, const float* inverse, long keys, long padded, long head, float* out,
                long out_row) {
    constexpr int PARTS = BLOCK / VECTORS;
    vec sums[PARTS][ROWS][VECTORS] = {};
    long j = 0;
    for (; j + PARTS <= keys; j += PARTS)
        for (int part = 0; part < PARTS; ++part)
            for (int i = 0; i < VECTORS; ++i) {
                const vec value = load(v + (j + part) * head + i * LANES);
                for (int row = 0; row < ROWS; ++row) sums[part][row][i] += scores[row * padded + j + part] * value;
            }
    for (; j < keys; ++j)
        for (int row = 0; row < ROWS; ++row)
            for (int i = 0; i < VECTORS; ++i)
                sums[0][row][i] += scores[row * padded + j] * load(v + j * head + i * LANES);
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < VECTORS; ++i) {
            vec total = sums[0][row][i];
            for (int part = 1; part < PARTS; ++part) total += sums[part][row][i];
            store(out + row * out_row + i * LANES, total * inverse[row]);
        }
}

// One head of all rows: out[head width] = softmax of its scores, times the values. Keys, distances and values are read
// once for all rows.
template <int ROWS>
void attend(const Pass& p, const Layer& layer, long n, const float* qkv, float* scores, float* attended) {
    const long keys = p.end - p.first, head = p.head, all_heads = p.heads * head, padded = padded_keys(keys);
    const float scale = 1.44269504f / std::sqrt(float(head));  // log2(e): the powers are of 2
    const float *content_bias = layer.biases + n * head, *position_bias = layer.biases + all_heads + n * head;
    Query<ROWS> query;
    const float* r[ROWS];
    for (int row = 0; row < ROWS; ++row) {
        const float* q = qkv + row * 3 * all_heads + n * head;
        for (long h = 0; h < head; ++h) {
            query.content[row][h] = (q[h] + content_bias[h]) * scale;
            query.position[row][h] = (q[h] + position_bias[h]) * scale;
        }
        r[row] = layer.r + n * head * p.distances + p.column + p.shifts[row];
    }
    const float* k = layer.keys + n * head * p.kept_slots + p.first;
    for (long j = 0; j < keys; j += BLOCK * LANES) {
        const float* here[ROWS];
        for (int row = 0; row < ROWS; ++row) here[row] = r[row] + j;
        score_block<ROWS>(query, k + j, here, p.kept_slots, p.distances, head, scores + j, padded);
    }
    float inverse[ROWS];
    for (int row = 0; row < ROWS; ++row) inverse[row] = weigh(scores + row * padded, keys, padded, p.hidden);
    const float* v = layer.values + (n * p.kept_slots + p.first) * head;
    float* out = attended + n * head;
    long h = 0;
    for (; h + BLOCK * LANES <= head; h += BLOCK * LANES)
        mix_values<ROWS, BLOCK>(v + h, scores, inverse, keys, padded, head, out + h, all_heads);
    for (; h < head; h += LANES) mix_values<ROWS, 1>(v + h, scores, inverse, keys, padded, head, out + h, all_heads);
}

void attend_rows(const Pass& p, const Layer& layer, long n, const float* qkv, float* scores, float* attended) {
    switch (p.rows) {
        case 1: attend<1>(p, layer, n, qkv, scores, attended); break;
        case 2: attend<2>(p, layer, n, qkv, scores, attended); break;
        default: attend<3>(p, layer, n, qkv, scores, attended);
    }
}

}  // namespace

extern "C" {

long decode_most_rows() { return MOST_ROWS; }

// Floats of scratch memory that a pass over so many keys needs.
long decode_scratch(long width, long heads, long head, long inner, long keys) {
    return MOST_ROWS * (4 * heads * head + width + inner + heads * padded_keys(keys));
}

void decode(const Layer* layers, const Pass* pass) {
    const Pass& p = *pass;
    const long all_heads = p.heads * p.head, padded = padded_keys(p.end - p.first);
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
        project(p, p.rows, p.x, layer.qkv, qkv, p.width, 3 * all_heads);
        for (long row = 0; row + 1 < p.rows; ++row)
            for (long n = 0; n < p.heads; ++n) {
                const float *k = qkv + (row * 3 + 1) * all_heads + n * p.head, *v = k + all_heads;
                for (long h = 0; h < p.head; ++h) layer.keys[(n * p.head + h) * p.kept_slots + p.slots[row]] = k[h];
                std::memcpy(layer.values + (n * p.kept_slots + p.slots[row]) * p.head, v, p.head * sizeof(float));
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long n = 0; n < p.heads; ++n)
            attend_rows(p, layer, n, qkv, scores + n * MOST_ROWS * padded, attended);
        project(p, p.rows, attended, layer.o, added, all_heads, p.width);
        add_norm(p.x, added, layer.norm, layer.norm_bias, p.rows, p.width, p.eps);
        project(p, p.rows, p.x, layer.first, inner, p.width, p.inner);
        for (long i = 0; i < p.rows * p.inner; i += LANES) {
            const vec v = load(inner + i);
            store(inner + i, v * (0.5f + 0.5f * erf_of(v * 0.70710678f)));
        }
        project(p, p.rows, inner, layer.second, added, p.inner, p.width);
        add_norm(p.x, added, layer.last_norm, layer.last_norm_bias, p.rows, p.width, p.eps);
    }
    project(p, 1, p.x + (p.rows - 1) * p.width, p.output, p.logits, p.width, p.vocabulary);
}

}
