// One pass of generation: groups of a few rows through all layers, with kept keys and values, and the logits of each
// group's last row.
//
// A pass reads each weight from memory once, for all rows together. So matrices may be kept in bfloat16 or int8; all sums
// are of float32, and a row's bits do not depend on how many groups there are. Widths must be multiples of 16. Shapes: see
// generation/decoder.py.

#include <functional>

#include "few_rows.h"

namespace {

constexpr int MOST_ROWS = 3, MOST_GROUPS = 8, WIDEST_HEAD = 1024;
constexpr int BLOCK = LANES == 16 ? 4 : 2;  // vectors whose products are computed together
// Keys and projected distances are kept as panels of columns, [panel][head][PANEL]: memory is read in its order, and no
// vector has to be summed up.
constexpr int PANEL = 64;

// A coarse copy of the output in panels of int8, [panel][width][PANEL], filled up with columns that never win. A coarse
// logit is at most slack * (length of the hidden state) from the exact one.
struct Screen {
    const int8_t* panels;
    const float *scales, *bias, *slack;
};

struct Layer {
    Matrix qkv, o, first, second;
    const float *r, *biases, *norm, *norm_bias, *last_norm, *last_norm_bias;
    float *keys, *values;
};

// Rows of one pass that see the same keys: some tokens of the content, and last the query. Later groups see what earlier
// ones keep, and may keep other keys in the same slots.
struct Group {
    long rows, first, end, column;  // slots of the keys; the first distance of a row at the highest place
};

struct Pass {
    float *x, *scratch, *logits;
    const float *table, *mask;
    Matrix output;
    Screen screen;                // of the output; null: there is none
    const unsigned char* hidden;  // for each key: its token is not known; null: all are known
    const Group* groups;
    const long *ids, *slots, *shifts;  // of each row: its token, the slot of its key, its distance from the highest place
    long count, rows, layers, width, heads, head, inner, vocabulary;
    long kept_slots, distances, kind;
    long likeliest;  // how many of the greatest logits are needed; 0: all logits
    float eps;
    int threads;
};

// Room for the products of so many columns, which may begin and end inside a panel, and for a vector behind them.
inline long score_columns(long columns) { return up(columns + PANEL + LANES, PANEL); }

void project(const Pass& p, long rows, const float* x, const Matrix& matrix, float* out, long out_row, long inputs,
             long outputs) {
    switch (p.kind) {
        case INT8: products<int8_t>(rows, x, matrix, out, out_row, inputs, outputs, p.threads); break;
        case BFLOAT16: products<bf16>(rows, x, matrix, out, out_row, inputs, outputs, p.threads); break;
        default: products<float>(rows, x, matrix, out, out_row, inputs, outputs, p.threads);
    }
}

// How far each of LANES coarse logits can be from the exact ones. The last term is the rounding of two sums with the bias.
inline vec coarseness(const Pass& p, long j, vec logits, float length) {
    return load(p.screen.slack + j) * length + where(logits < 0.0f, -logits, logits) * 2.4e-7f;
}

// Writes coarse logits of some rows, [row][padded vocabulary], and the least that each exact one can be.
template <int ROWS>
void coarse_logits(const Pass& p, const float* x, const float* lengths, float* out, float* least) {
    const long padded = up(p.vocabulary, PANEL);
#pragma omp parallel for num_threads(p.vocabulary * p.width <= SMALL ? 1 : p.threads) schedule(static)
    for (long first = 0; first < padded; first += PANEL) {
        const int8_t* panel = p.screen.panels + first * p.width;
        for (int part = 0; part < PANEL; part += BLOCK * LANES) {
            vec sums[ROWS][BLOCK] = {};
            for (long i = 0; i < p.width; ++i)
                for (int block = 0; block < BLOCK; ++block) {
                    const int8_t* weights = panel + i * PANEL + part + block * LANES;
                    if (!part && !block) __builtin_prefetch(weights + AHEAD);
                    const vec w = load(weights);
                    for (int row = 0; row < ROWS; ++row) sums[row][block] += w * x[row * p.width + i];
                }
            for (int row = 0; row < ROWS; ++row)
                for (int block = 0; block < BLOCK; ++block) {
                    const long j = first + part + block * LANES;
                    const vec logits = sums[row][block] * load(p.screen.scales + j) + load(p.screen.bias + j);
                    store(out + row * padded + j, logits);
                    store(least + row * padded + j, logits - coarseness(p, j, logits, lengths[row]));
                }
        }
    }
}

// Computes a row's greatest logits exactly, as many as are needed; others become -infinity. Reads only those rows of the
// output whose coarse logit can be one of the greatest.
template <class Weight>
void greatest_logits(const Pass& p, const float* x, float length, float* out, float* least) {
    const long padded = up(p.vocabulary, PANEL);
    float threshold;  // at least so many logits as are needed are not below it
    if (p.likeliest == 1) {
        vec most = load(least);
        for (long j = LANES; j < padded; j += LANES) most = where(load(least + j) > most, load(least + j), most);
        threshold = largest(most);
    } else {
        float* last = least + std::min(p.likeliest, p.vocabulary) - 1;
        std::nth_element(least, last, least + p.vocabulary, std::greater<float>());
        threshold = *last;
    }
    for (long first = 0; first < padded; first += LANES) {
        const vec logits = load(out + first);
        const ints loses = logits + coarseness(p, first, logits, length) < threshold;  // false with a nan
        store(out + first, where(loses, all(-INFINITY), logits));
        for (long j = first; j < std::min(first + LANES, p.vocabulary); ++j) {
            if (out[j] == -INFINITY) continue;
            const void* weights = static_cast<const Weight*>(p.output.weights) + j * p.width;
            products<Weight>(1, x, {weights, nullptr, p.output.bias + j}, out + j, 1, p.width, 1, 1);
        }
    }
}

// The logits of the queries, which are the first rows of x.
void output(const Pass& p) {
    const long padded = up(p.vocabulary, PANEL);
    if (!p.likeliest || !p.screen.panels)
        return project(p, p.count, p.x, p.output, p.logits, padded, p.width, p.vocabulary);
    float lengths[MOST_GROUPS];
    for (long row = 0; row < p.count; ++row) {
        double squares = 0;
        for (long i = 0; i < p.width; ++i) squares += double(p.x[row * p.width + i]) * p.x[row * p.width + i];
        lengths[row] = float(std::sqrt(squares)) * 1.000001f;
    }
    float* least = p.scratch;
    for (long row = 0; row < p.count;) {
        const long rows = std::min<long>(4, p.count - row), at = row * padded;
        constexpr decltype(&coarse_logits<1>) of[] = {coarse_logits<1>, coarse_logits<2>, coarse_logits<3>, coarse_logits<4>};
        of[rows - 1](p, p.x + row * p.width, lengths + row, p.logits + at, least + at);
        row += rows;
    }
    for (long row = 0; row < p.count; ++row)
        (p.kind == BFLOAT16 ? greatest_logits<bf16> : greatest_logits<float>)(
            p, p.x + row * p.width, lengths[row], p.logits + row * padded, least + row * padded);
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

// Moves the row of each group's query to the first rows.
void keep_queries(const Pass& p) {
    long row = -1;
    for (long group = 0; group < p.count; ++group) {
        row += p.groups[group].rows;
        std::memmove(p.x + group * p.width, p.x + row * p.width, p.width * sizeof(float));
    }
}

// out[row][column] = x[row] . column of a panel, [head][PANEL].
template <int ROWS>
void panel_products(const float (*x)[WIDEST_HEAD], const float* panel, long head, float* out, long out_row) {
    for (int part = 0; part < PANEL; part += BLOCK * LANES) {
        vec sums[ROWS][BLOCK] = {};
        for (long h = 0; h < head; ++h)
            for (int block = 0; block < BLOCK; ++block) {
                const vec values = load(panel + h * PANEL + part + block * LANES);
                for (int row = 0; row < ROWS; ++row) sums[row][block] += x[row][h] * values;
            }
        for (int row = 0; row < ROWS; ++row)
            for (int block = 0; block < BLOCK; ++block)
                store(out + row * out_row + part + block * LANES, sums[row][block]);
    }
}

// Products with columns [begin, end) and those that share a panel with them; the first column's product is out[row][0].
template <int ROWS>
void products_of_panels(const float (*x)[WIDEST_HEAD], const float* panels, long begin, long end, long head, float* out,
                        long out_row) {
    for (long panel = begin / PANEL; panel * PANEL < end; ++panel)
        panel_products<ROWS>(x, panels + panel * head * PANEL, head, out + (panel - begin / PANEL) * PANEL, out_row);
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
void attend(const Pass& p, const Layer& layer, const Group& group, long n, const long* shifts, const float* qkv,
            float* scratch, float* attended) {
    const long keys = group.end - group.first, head = p.head, all_heads = p.heads * head;
    const float scale = 1.44269504f / std::sqrt(float(head));  // log2(e): the powers are of 2
    const float *content_bias = layer.biases + n * head, *position_bias = layer.biases + all_heads + n * head;
    float content[ROWS][WIDEST_HEAD], position[ROWS][WIDEST_HEAD];
    for (int row = 0; row < ROWS; ++row) {
        const float* q = qkv + row * 3 * all_heads + n * head;
        for (long h = 0; h < head; ++h) {
            content[row][h] = (q[h] + content_bias[h]) * scale;
            position[row][h] = (q[h] + position_bias[h]) * scale;
        }
    }
    const auto [nearest, farthest] = std::minmax_element(shifts, shifts + ROWS);
    const long begin = group.column + *nearest, end = group.column + *farthest + keys;
    const long padded = score_columns(keys), columns = score_columns(end - begin);
    float *scores = scratch, *by_distance = scratch + ROWS * padded;
    products_of_panels<ROWS>(content, layer.keys + n * p.kept_slots * head, group.first, group.end, head, scores, padded);
    products_of_panels<ROWS>(position, layer.r + n * p.distances * head, begin, end, head, by_distance, columns);
    float inverse[ROWS];
    for (int row = 0; row < ROWS; ++row) {
        const float* by_content = scores + row * padded + group.first % PANEL;
        const float* by_position = by_distance + row * columns + begin % PANEL + shifts[row] - *nearest;
        for (long j = 0; j < keys; j += LANES)
            store(scores + row * padded + j, load(by_content + j) + load(by_position + j));
        inverse[row] = weigh(scores + row * padded, keys, up(keys, LANES), p.hidden);
    }
    const float* v = layer.values + (n * p.kept_slots + group.first) * head;
    float* out = attended + n * head;
    long h = 0;
    for (; h + BLOCK * LANES <= head; h += BLOCK * LANES)
        mix_values<ROWS, BLOCK>(v + h, scores, inverse, keys, padded, head, out + h, all_heads);
    for (; h < head; h += LANES) mix_values<ROWS, 1>(v + h, scores, inverse, keys, padded, head, out + h, all_heads);
}

// One head of all groups, one after another: keeps the content's keys and values, then attends.
void attend_groups(const Pass& p, const Layer& layer, long n, bool only_queries, const float* qkv, float* scratch,
                   float* attended) {
    const long all_heads = p.heads * p.head, kept = n * p.kept_slots * p.head;
    long row = 0;
    for (const Group* group = p.groups; group < p.groups + p.count; ++group) {
        for (long content = row; content + 1 < row + group->rows; ++content) {
            const float *k = qkv + (content * 3 + 1) * all_heads + n * p.head, *v = k + all_heads;
            const long slot = p.slots[content];
            float* column = layer.keys + kept + slot / PANEL * PANEL * p.head + slot % PANEL;
            for (long h = 0; h < p.head; ++h) column[h * PANEL] = k[h];
            std::memcpy(layer.values + kept + slot * p.head, v, p.head * sizeof(float));
        }
        const long skipped = only_queries ? group->rows - 1 : 0, rows = group->rows - skipped;
        row += skipped;
        const float* q = qkv + row * 3 * all_heads;
        switch (rows) {
            case 1: attend<1>(p, layer, *group, n, p.shifts + row, q, scratch, attended); break;
            case 2: attend<2>(p, layer, *group, n, p.shifts + row, q, scratch, attended); break;
            default: attend<3>(p, layer, *group, n, p.shifts + row, q, scratch, attended);
        }
        row += rows;
        attended += rows * all_heads;
    }
}

}  // namespace

extern "C" {

// Floats of scratch memory for one head: scores, and products with distances, of which there may be twice as many.
inline long head_scratch(long keys) { return MOST_ROWS * (score_columns(keys) + score_columns(2 * keys)); }

// Floats of scratch memory that a pass over so many keys needs.
long decode_scratch(long width, long heads, long head, long inner, long keys, long vocabulary) {
    const long rows = MOST_GROUPS * MOST_ROWS;
    return std::max(MOST_GROUPS * up(vocabulary, PANEL),
                    rows * (4 * heads * head + width + inner) + heads * head_scratch(keys));
}

void decode(const Layer* layers, const Pass* pass) {
    const Pass& p = *pass;
    const long all_heads = p.heads * p.head;
    float* qkv = p.scratch;
    float* attended = qkv + p.rows * 3 * all_heads;
    float* added = attended + p.rows * all_heads;
    float* inner = added + p.rows * p.width;
    float* by_head = inner + p.rows * p.inner;
    for (long row = 0; row < p.rows; ++row)
        std::memcpy(p.x + row * p.width, p.ids[row] < 0 ? p.mask : p.table + p.ids[row] * p.width,
                    p.width * sizeof(float));
    const Group& longest = p.groups[p.count - 1];
    const int threads = (longest.end - longest.first) * all_heads * p.rows <= SMALL ? 1 : p.threads;
    for (long number = 0; number < p.layers; ++number) {
        const Layer& layer = layers[number];
        const bool is_last = number + 1 == p.layers;  // only the queries of its rows are needed
        const long rows = is_last ? p.count : p.rows;
        project(p, p.rows, p.x, layer.qkv, qkv, 3 * all_heads, p.width, 3 * all_heads);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long n = 0; n < p.heads; ++n)
            attend_groups(p, layer, n, is_last, qkv, by_head + n * head_scratch(p.kept_slots), attended);
        if (is_last) keep_queries(p);
        project(p, rows, attended, layer.o, added, p.width, all_heads, p.width);
        add_norm(p.x, added, layer.norm, layer.norm_bias, rows, p.width, p.eps);
        project(p, rows, p.x, layer.first, inner, p.inner, p.width, p.inner);
        for (long i = 0; i < rows * p.inner; i += LANES) {
            const vec v = load(inner + i);
            store(inner + i, v * normal_cdf(v));
        }
        project(p, rows, inner, layer.second, added, p.width, p.inner, p.width);
        add_norm(p.x, added, layer.last_norm, layer.last_norm_bias, rows, p.width, p.eps);
    }
    output(p);
}

}
