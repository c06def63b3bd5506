// Vectors of the processor at hand, and the random numbers of model/dropout.py on them.
//
// Vectors are the compiler's (GCC and Clang), so one source serves AVX-512, AVX2 and NEON. Values in memory are float32
// or bfloat16, and are computed with as float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 6, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 4, TILE_VECTORS = 2;
#else
constexpr int LANES = 4, TILE_ROWS = 4, TILE_VECTORS = 4;
#endif
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef int32_t loose_ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

typedef uint16_t loose_halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t loose_bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

struct bf16 {
    uint16_t bits;  // the upper half of a float32
};

inline vec load(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<loose*>(p) = v; }
inline vec load(const bf16* p) {
    const words bits = __builtin_convertvector(*reinterpret_cast<const loose_halves*>(p), words) << 16;
    vec v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
inline vec load(const int8_t* p) {
#if defined(__AVX512F__)  // GCC 12 widens bytes one by one
    const ints wide = (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
    const ints wide = (ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    const ints wide = __builtin_convertvector(*reinterpret_cast<const loose_bytes*>(p), ints);
#endif
    return __builtin_convertvector(wide, vec);
}
// Rounds to the nearest value; to the even one of two.
inline void store(bf16* p, vec v) {
    words bits;
    std::memcpy(&bits, &v, sizeof bits);
    const words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const words kept = v == v ? rounded : (bits >> 16) | 0x40u;  // rounding may not turn nan into a number
    *reinterpret_cast<loose_halves*>(p) = __builtin_convertvector(kept, loose_halves);
}
template <class From, class To>
inline void copy_values(const From* from, To* to, long count) {
    for (long j = 0; j < count; j += LANES) store(to + j, load(from + j));
}
inline vec all(float x) { return x - vec{}; }
inline words all_words(uint32_t x) { return x - words{}; }
inline vec where(ints condition, vec a, vec b) { return condition ? a : b; }
inline long up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

inline float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += v[i];
    return total;
}
inline float largest(vec v) {
    float best = v[0];
    for (int i = 1; i < LANES; ++i) best = v[i] > best ? v[i] : best;
    return best;
}
inline ints lane_numbers() {
    ints lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = i;
    return lanes;
}

// Exchanges blocks of STEP lanes of two vectors, one step of a transposition: the upper halves of a's blocks for the
// lower halves of b's. Returns the new a; if UPPER, the new b.
template <int STEP, bool UPPER, int... LANE>
inline vec exchange(vec a, vec b, std::integer_sequence<int, LANE...>) {
    constexpr auto source = [](int lane) {
        return lane & STEP ? LANES + lane - (UPPER ? 0 : STEP) : lane + (UPPER ? STEP : 0);
    };
#if defined(__clang__)
    return __builtin_shufflevector(a, b, source(LANE)...);
#else
    return __builtin_shuffle(a, b, ints{source(LANE)...});
#endif
}
template <int STEP>
inline void transpose_by(vec* x) {
    using All = std::make_integer_sequence<int, LANES>;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if (!(i & STEP)) {
            const vec a = x[i], b = x[i + STEP];
            x[i] = exchange<STEP, false>(a, b, All{}), x[i + STEP] = exchange<STEP, true>(a, b, All{});
        }
}
// Transposes a square of LANES vectors in registers.
inline void transpose_square(vec* x) {
    if constexpr (LANES > 8) transpose_by<8>(x);
    if constexpr (LANES > 4) transpose_by<4>(x);
    transpose_by<2>(x), transpose_by<1>(x);
}

// 2^x for x <= 0 (0 below -126): polynomial of 2^fraction, exponent added as bits.
// Coefficients: least squares on [-0.5, 0.5] in the Chebyshev nodes; relative error 2e-7.
inline vec exp2_nonpositive(vec x) {
    const ints vanishes = x < -126.0f;
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const vec whole = (x + magic) - magic;
    const vec f = x - whole;
    vec p = all(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const ints exponent = __builtin_convertvector(whole, ints) << 23;
    ints bits;
    std::memcpy(&bits, &p, sizeof bits);
    bits += exponent;
    std::memcpy(&p, &bits, sizeof p);
    return where(vanishes, vec{}, p);
}

// erf(x): an odd rational function on [-4, 4]; outside, erf(x) is +-1 in float32.
// Coefficients: minimax, as in Eigen's and XNNPACK's float versions; absolute error below 3e-7.
inline vec erf_of(vec x) {
    x = where(x > 4.0f, all(4.0f), where(x < -4.0f, all(-4.0f), x));
    const vec s = x * x;
    vec p = all(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    vec q = all(-1.45660718464996e-05f);
    q = q * s + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    return x * p / q;
}

inline vec normal_cdf(vec x) { return 0.5f + 0.5f * erf_of(x * 0.70710678f); }

// The hash of model/dropout.py.
constexpr uint32_t GOLDEN = 0x9E3779B9u;
template <class W>
inline W mix(W x) {
    x = (x ^ (x >> 16)) * 0x21F0AAADu;
    x = (x ^ (x >> 15)) * 0xD35A2D97u;
    return x ^ (x >> 15);
}

// Which elements of one row survive: call once per vector of columns, from column 0 on.
struct Noise {
    uint32_t key = 0, threshold = 0;
    float scale = 1;
    bool on() const { return threshold != 0; }
};
struct RowNoise {
    words counter;
    words threshold;
    RowNoise(const Noise& noise, uint32_t row) : threshold(all_words(noise.threshold)) {
        words column;
        for (int i = 0; i < LANES; ++i) column[i] = i;
        counter = mix<uint32_t>(noise.key + row) + column * GOLDEN;
    }
    ints keep() {
        const words bits = mix<words>(counter);
        counter += uint32_t(LANES) * GOLDEN;
        return bits >= threshold;
    }
};

}  // namespace
