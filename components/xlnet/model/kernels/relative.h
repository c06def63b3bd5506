// What attention.cpp and streams.cpp share: the terms of a score, the softmax of a row, and their gradients.
//
// P is the problem of either. Its distances are numbered from 0 to distances() - 1; column c of an arranged array holds
// distance c + origin(), or zeros if there is no such distance.
#pragma once

#include "products.h"

namespace {

// The encodings of all distances for every head, as panels (for scores) and as rows (for gradients).
template <class P>
void arrange_distances(const P& p, float* panels, float* rows) {
    const long columns = p.columns();
#pragma omp parallel for num_threads(p.threads)
    for (long n = 0; n < p.heads; ++n) {
        float* mine = rows + n * columns * p.width;
        for (long c = 0; c < columns; ++c) {
            const long distance = c + p.origin();
            if (distance >= 0 && distance < p.distances())
                std::memcpy(mine + c * p.width, p.r + (distance * p.heads + n) * p.width, p.width * 4);
            else
                std::memset(mine + c * p.width, 0, p.width * 4);
        }
        to_panels(mine, p.width, columns, p.width, panels + n * columns * p.width);
    }
}

// A query as the left factor of its scores by content and by position; zeros for a row without a query.
template <class P, class T>
void add_biases(const P& p, long n, const T* q, float factor, float* content, float* position) {
    for (long h = 0; h < p.width; h += LANES) {
        const vec v = q ? load(q + h) : vec{};
        store(content + h, q ? (v + load(p.content_bias + n * p.width + h)) * factor : v);
        store(position + h, q ? (v + load(p.position_bias + n * p.width + h)) * factor : v);
    }
}

// What a key of another segment adds to the query's score. Softmax ignores what is constant along a row, so "same
// segment" is the zero of this term.
template <class P, class T>
float segment_score(const P& p, long n, const T* q, float factor) {
    if (!p.segment_bias) return 0.0f;
    const float *same = p.segment_embed + n * p.width, *other = same + p.heads * p.width;
    vec scores{};
    for (long h = 0; h < p.width; h += LANES)
        scores += (load(q + h) + load(p.segment_bias + n * p.width + h)) * (load(other + h) - load(same + h));
    return sum(scores) * factor;
}

// Turns scores (powers of two; minus infinity for keys that are not seen) into weights that are not yet divided by their
// sum, with dropout. Returns what they are to be multiplied by: zero for a query that sees nothing, whose log_sum is
// infinite.
inline float softmax_row(float* row, long padded, const Noise& noise, uint32_t noise_row, float* log_sum) {
    vec best = load(row);
    for (long j = LANES; j < padded; j += LANES) {
        const vec x = load(row + j);
        best = where(x > best, x, best);
    }
    const float top = largest(best);
    if (top == -INFINITY) {
        std::memset(row, 0, padded * 4);
        *log_sum = INFINITY;
        return 0.0f;
    }
    vec total{};
    RowNoise drop(noise, noise_row);
    for (long j = 0; j < padded; j += LANES) {
        const vec e = exp2_nonpositive(load(row + j) - top);
        total += e;
        store(row + j, noise.on() ? where(drop.keep(), e, vec{}) : e);
    }
    const float whole = sum(total);
    *log_sum = top + std::log2(whole);
    return noise.scale / whole;
}

// Turns scores into their gradients, in `row` and in `distance`, and the weights' gradients into the weights after
// dropout. Returns the sum of the gradients of scores of keys of another segment: those where differs(j) is true.
template <class Differs>
float softmax_row_gradient(float* row, float* dweight, float* distance, long padded, float log_sum, const Noise& noise,
                           uint32_t noise_row, const Differs& differs) {
    RowNoise drop(noise, noise_row);
    vec dots{}, other{};
    for (long j = 0; j < padded; j += LANES) {
        const vec weight = exp2_nonpositive(load(row + j) - log_sum);
        vec grad = load(dweight + j);
        if (noise.on()) {
            const ints keep = drop.keep();
            grad = where(keep, grad * noise.scale, vec{});
            // Weights are never negative: the sign tells the second pass whether one was dropped.
            store(row + j, where(keep, weight, -weight));
        } else {
            store(row + j, weight);
        }
        store(dweight + j, grad);
        dots += weight * grad;
    }
    const float dot = sum(dots);
    for (long j = 0; j < padded; j += LANES) {
        const vec marked = load(row + j);
        const vec weight = where(marked < 0.0f, -marked, marked);
        const vec dscore = weight * (load(dweight + j) - dot);
        store(dweight + j, where(marked > 0.0f, marked * noise.scale, vec{}));
        store(row + j, dscore);
        store(distance + j, dscore);
        other += differs(j, dscore);
    }
    return sum(other);
}

// The gradient of a query, and its part of the biases' gradients, dbias [4, H], from the gradients of its scores times
// keys and times distances.
template <class P, class T>
void query_gradient(const P& p, long n, const T* q, const float* by_content, const float* by_position, float by_segment,
                    T* to, float* dbias) {
    const long H = p.width;
    const float scale = 1.0f / std::sqrt(float(H));
    for (long h = 0; h < H; h += LANES) {
        const vec content = load(by_content + h) * scale, position = load(by_position + h) * scale;
        store(dbias + h, load(dbias + h) + content);
        store(dbias + H + h, load(dbias + H + h) + position);
        vec whole = content + position;
        if (p.segment_bias) {
            const float *same = p.segment_embed + n * H + h, *other = same + p.heads * H;
            const vec change = by_segment * scale * (load(other) - load(same));
            whole += change;
            store(dbias + 2 * H + h, load(dbias + 2 * H + h) + change);
            const vec asked = load(q + h) + load(p.segment_bias + n * H + h);
            store(dbias + 3 * H + h, load(dbias + 3 * H + h) + by_segment * scale * asked);
        }
        store(to + h, whole);
    }
}

// Adds up what the groups of texts found, in order: grad_r [R, N, H] and grad_biases [4, N, H]. Called by all threads.
template <class P>
void add_groups(const P& p, long groups, const float* partial_r, const float* partial_biases, float* grad_r,
                float* grad_biases) {
    const long H = p.width, columns = p.columns(), origin = p.origin();
#pragma omp for
    for (long row = 0; row < p.distances() * p.heads; ++row) {
        const long distance = row / p.heads, n = row % p.heads;
        for (long h = 0; h < H; h += LANES) {
            vec total{};
            // A distance before the first column belongs to no pair.
            for (long g = 0; g < groups && distance >= origin; ++g)
                total += load(partial_r + ((g * p.heads + n) * columns + distance - origin) * H + h);
            store(grad_r + row * H + h, total * LN2);
        }
    }
#pragma omp for
    for (long n = 0; n < p.heads; ++n)
        for (long kind = 0; kind < 4; ++kind)
            for (long h = 0; h < H; ++h) {
                float total = 0;
                for (long g = 0; g < groups; ++g) total += partial_biases[((g * p.heads + n) * 4 + kind) * H + h];
                grad_biases[(kind * p.heads + n) * H + h] = total;
            }
}

}  // namespace
