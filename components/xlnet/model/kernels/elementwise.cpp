// The element-wise parts of a block, each in one pass over memory: dropout, GELU with dropout, and layer
// norm of a residual plus dropout; and the optimizer's update of an embedding table. The backward passes
// recompute the masks and the normalised values.
//
// Everything is computed in float32; what enters or leaves a product may be bfloat16 in memory. Rows are divided
// into a fixed number of parts, so that sums over rows do not depend on the number of threads.

#include <omp.h>

#include "vectors.h"

namespace {

inline vec normal_pdf(vec x) { return 0.39894228f * exp2_nonpositive(x * x * -0.72134752f); }

// The first row of a part; part `parts` begins at the end.
inline long part_start(long rows, long parts, long part) { return rows * part / parts; }

template <class T>
void gelu_forward(const T* x, T* out, long rows, long width, const Noise& noise, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        RowNoise drop(noise, uint32_t(row));
        const T* from = x + row * width;
        T* to = out + row * width;
        for (long j = 0; j < width; j += LANES) {
            const vec v = load(from + j), y = v * normal_cdf(v);
            store(to + j, noise.on() ? where(drop.keep(), y * noise.scale, vec{}) : y);
        }
    }
}

template <class T>
void gelu_backward(const T* x, const T* grad_out, T* grad_x, long rows, long width, const Noise& noise, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        RowNoise drop(noise, uint32_t(row));
        const long at = row * width;
        for (long j = 0; j < width; j += LANES) {
            const vec v = load(x + at + j);
            vec grad = load(grad_out + at + j);
            if (noise.on()) grad = where(drop.keep(), grad * noise.scale, vec{});
            store(grad_x + at + j, grad * (normal_cdf(v) + v * normal_pdf(v)));
        }
    }
}

template <class T>
void norm_forward(const T* x, const float* residual, const float* weight, const float* bias, float* out, float* moments,
                  long rows, long width, float eps, const Noise& noise, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        RowNoise drop(noise, uint32_t(row));
        const T* from = x + row * width;
        const float* old = residual + row * width;
        float* to = out + row * width;
        vec total{};
        float first = 0;  // subtracted from all values, so that the sums of equal values are exactly zero
        for (long j = 0; j < width; j += LANES) {
            vec v = load(from + j);
            if (noise.on()) v = where(drop.keep(), v * noise.scale, vec{});
            v += load(old + j);
            if (j == 0) first = v[0];
            total += v - first;
            store(to + j, v);
        }
        const float mean = first + sum(total) / float(width);
        vec squares{};
        for (long j = 0; j < width; j += LANES) {
            const vec d = load(to + j) - mean;
            squares += d * d;
        }
        const float inverse = 1.0f / std::sqrt(sum(squares) / float(width) + eps);
        for (long j = 0; j < width; j += LANES)
            store(to + j, (load(to + j) - mean) * inverse * load(weight + j) + load(bias + j));
        moments[row * 2] = mean, moments[row * 2 + 1] = inverse;
    }
}

template <class T>
void norm_backward(const T* x, const float* residual, const float* weight, const float* moments, const float* grad_out,
                   T* grad_x, float* grad_residual, float* partial, long parts, float* grad_weight_bias, long rows,
                   long width, const Noise& noise, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long part = 0; part < parts; ++part) {
        float *weights = partial + part * 2 * width, *biases = weights + width;
        for (long row = part_start(rows, parts, part); row < part_start(rows, parts, part + 1); ++row) {
            const long at = row * width;
            const float mean = moments[row * 2], inverse = moments[row * 2 + 1];
            T* to_x = grad_x + at;
            float* to_residual = grad_residual + at;
            vec grads{}, products{};
            RowNoise drop(noise, uint32_t(row));
            // grad_residual holds the normalised values until the second pass.
            for (long j = 0; j < width; j += LANES) {
                vec v = load(x + at + j);
                if (noise.on()) v = where(drop.keep(), v * noise.scale, vec{});
                const vec normal = (v + load(residual + at + j) - mean) * inverse, grad = load(grad_out + at + j);
                store(weights + j, load(weights + j) + grad * normal);
                store(biases + j, load(biases + j) + grad);
                const vec scaled = grad * load(weight + j);
                grads += scaled, products += scaled * normal;
                store(to_residual + j, normal);
            }
            const float grad_mean = sum(grads) / float(width), product_mean = sum(products) / float(width);
            RowNoise again(noise, uint32_t(row));
            for (long j = 0; j < width; j += LANES) {
                const vec scaled = load(grad_out + at + j) * load(weight + j);
                const vec grad = (scaled - grad_mean - load(to_residual + j) * product_mean) * inverse;
                store(to_residual + j, grad);
                store(to_x + j, noise.on() ? where(again.keep(), grad * noise.scale, vec{}) : grad);
            }
        }
    }
    for (long j = 0; j < 2 * width; ++j) {
        float total = 0;
        for (long part = 0; part < parts; ++part) total += partial[part * 2 * width + j];
        grad_weight_bias[j] = total;
    }
}

}  // namespace

extern "C" {

// out = dropout(gelu(x)), [rows, width]; width a multiple of 16. All arrays are bfloat16 if `halves`, else float32.
void gelu_dropout_forward(const void* x, void* out, long rows, long width, uint32_t key, uint32_t threshold,
                          float scale, int threads, int halves) {
    const Noise noise{key, threshold, scale};
    if (halves)
        gelu_forward((const bf16*)x, (bf16*)out, rows, width, noise, threads);
    else
        gelu_forward((const float*)x, (float*)out, rows, width, noise, threads);
}

void gelu_dropout_backward(const void* x, const void* grad_out, void* grad_x, long rows, long width, uint32_t key,
                           uint32_t threshold, float scale, int threads, int halves) {
    const Noise noise{key, threshold, scale};
    if (halves)
        gelu_backward((const bf16*)x, (const bf16*)grad_out, (bf16*)grad_x, rows, width, noise, threads);
    else
        gelu_backward((const float*)x, (const float*)grad_out, (float*)grad_x, rows, width, noise, threads);
}

// out = dropout(x), [rows, width]. Applied to a gradient, this is the backward pass.
void dropout_rows(const float* x, float* out, long rows, long width, uint32_t key, uint32_t threshold, float scale,
                  int threads) {
    const Noise noise{key, threshold, scale};
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        RowNoise drop(noise, uint32_t(row));
        for (long at = row * width; at < (row + 1) * width; at += LANES)
            store(out + at, where(drop.keep(), load(x + at) * scale, vec{}));
    }
}

// out = norm(residual + dropout(x)) * weight + bias, [rows, width]; moments [rows, 2]: mean and 1 / deviation.
// x is bfloat16 if `halves`; all else is float32.
void dropout_add_norm_forward(const void* x, const float* residual, const float* weight, const float* bias, float* out,
                              float* moments, long rows, long width, float eps, uint32_t key, uint32_t threshold,
                              float scale, int threads, int halves) {
    const Noise noise{key, threshold, scale};
    if (halves)
        norm_forward((const bf16*)x, residual, weight, bias, out, moments, rows, width, eps, noise, threads);
    else
        norm_forward((const float*)x, residual, weight, bias, out, moments, rows, width, eps, noise, threads);
}

// If x is float32 and nothing is dropped, grad_x is also the residual's gradient: then both may be the same memory.
// x and grad_x are bfloat16 if `halves`. partial [parts, 2, width], zeroed by the caller; grad_weight_bias [2, width].
void dropout_add_norm_backward(const void* x, const float* residual, const float* weight, const float* moments,
                               const float* grad_out, void* grad_x, float* grad_residual, float* partial, long parts,
                               float* grad_weight_bias, long rows, long width, uint32_t key, uint32_t threshold,
                               float scale, int threads, int halves) {
    const Noise noise{key, threshold, scale};
    if (halves)
        norm_backward((const bf16*)x, residual, weight, moments, grad_out, (bf16*)grad_x, grad_residual, partial, parts,
                      grad_weight_bias, rows, width, noise, threads);
    else
        norm_backward((const float*)x, residual, weight, moments, grad_out, (float*)grad_x, grad_residual, partial,
                      parts, grad_weight_bias, rows, width, noise, threads);
}

// out [width, rows] = x [rows, width] transposed. sums [width]: of each column, unless null.
void transpose(const bf16* x, bf16* out, float* sums, long rows, long width, int threads) {
    constexpr long SIDE = 32;
#pragma omp parallel for num_threads(threads)
    for (long column = 0; column < width; column += SIDE) {
        const long columns = width - column < SIDE ? width - column : SIDE;
        float totals[SIDE] = {};
        for (long row = 0; row < rows; row += SIDE) {
            const long count = rows - row < SIDE ? rows - row : SIDE;
            bf16 block[SIDE][SIDE];
            for (long i = 0; i < count; ++i)
                for (long j = 0; j < columns; ++j) block[j][i] = x[(row + i) * width + column + j];
            for (long j = 0; j < columns; ++j) std::memcpy(out + (column + j) * rows + row, block[j], count * 2);
            for (long i = 0; sums && i < count; ++i)
                for (long j = 0; j < columns; ++j) {
                    const uint32_t bits = uint32_t(x[(row + i) * width + column + j].bits) << 16;
                    float value;
                    std::memcpy(&value, &bits, 4);
                    totals[j] += value;
                }
        }
        for (long j = 0; sums && j < columns; ++j) sums[column + j] = totals[j];
    }
}

// Cross-entropy of rows of logits [rows, width] with label smoothing. losses [rows]: each times its factor. The logits
// become their gradients: (softmax - smoothing / width - (1 - smoothing) at the target), times the factor.
void cross_entropy_rows(float* logits, const int64_t* target, const float* factor, float* losses, long rows, long width,
                        float smoothing, int threads) {
    const long whole = width / LANES * LANES;
    const float log2e = 1.44269504f;
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        float* x = logits + row * width;
        const float picked = x[target[row]];
        vec best = all(-INFINITY), all_logits{};
        for (long j = 0; j < whole; j += LANES) {
            const vec v = load(x + j);
            best = where(v > best, v, best), all_logits += v;
        }
        float top = largest(best), added = sum(all_logits);
        for (long j = whole; j < width; ++j) top = x[j] > top ? x[j] : top, added += x[j];
        vec totals{};
        for (long j = 0; j < whole; j += LANES) {
            const vec e = exp2_nonpositive((load(x + j) - top) * log2e);
            totals += e;
            store(x + j, e);
        }
        float total = sum(totals);
        for (long j = whole; j < width; ++j) x[j] = std::exp(x[j] - top), total += x[j];
        const float log_total = top + std::log(total);
        const float loss = log_total - (1.0f - smoothing) * picked - smoothing * (added / float(width));
        losses[row] = std::isfinite(added) ? loss * factor[row] : NAN;
        const float scale = factor[row] / total, less = factor[row] * smoothing / float(width);
        for (long j = 0; j < whole; j += LANES) store(x + j, load(x + j) * scale - less);
        for (long j = whole; j < width; ++j) x[j] = x[j] * scale - less;
        x[target[row]] -= (1.0f - smoothing) * factor[row];
    }
}

// AdamW (Loshchilov & Hutter 2019) on a table [rows, width] whose gradient has few rows: row r's is the
// gradient[place[r]], or zero where place[r] < 0. Rows that never had a gradient have zero moments, and only
// their weights decay. `seen` marks the other rows.
void adamw_rows(float* table, float* mean, float* square, uint8_t* seen, const int32_t* place, const float* gradient,
                long rows, long width, float rate, float decay, float beta1, float beta2, float epsilon,
                float correction1, float correction2, float gradient_scale, int threads) {
    const float keep = 1.0f - rate * decay, pace = rate / correction1, root = 1.0f / std::sqrt(correction2);
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; ++row) {
        float *p = table + row * width, *m = mean + row * width, *v = square + row * width;
        const float* g = place[row] < 0 ? nullptr : gradient + place[row] * width;
        if (!g && !seen[row]) {
            if (decay != 0.0f)
                for (long j = 0; j < width; ++j) p[j] *= keep;
            continue;
        }
        seen[row] = 1;
        for (long j = 0; j < width; ++j) {
            const float slope = g ? g[j] * gradient_scale : 0.0f;
            m[j] += (slope - m[j]) * (1.0f - beta1);
            v[j] = v[j] * beta2 + slope * slope * (1.0f - beta2);
            p[j] = p[j] * keep - pace * m[j] / (std::sqrt(v[j]) * root + epsilon);
        }
    }
}

}  // extern "C"
