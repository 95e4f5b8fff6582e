// AVX2 with FMA and F16C; avxvnni.cpp is the same with four-way dot products. Only the table may leave this file.
#include <immintrin.h>

#include "kernels.h"

namespace bitnet {
namespace {

constexpr size_t kAhead = 8192;  // bytes between what is multiplied and what is fetched

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

__m256i broadcast4(const int8_t* from) {
    int32_t value;
    __builtin_memcpy(&value, from, sizeof value);
    return _mm256_set1_epi32(value);
}

__m256i first_lanes(size_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count < 8 ? int32_t(count) : 8), lane);
}

__m256 load_first(const float* from, size_t count) {
    return count >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(count));
}

void store_first(float* to, size_t count, __m256 values) {
    if (count >= 8)
        _mm256_storeu_ps(to, values);
    else
        _mm256_maskstore_ps(to, first_lanes(count), values);
}

int32_t sum_of(__m256i values) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

float sum_of(__m256 values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

#if defined(__AVXVNNI__)
constexpr size_t kRun = size_t(-1);  // blocks that a partial sum may hold

__m256i gather(__m256i sum, __m256i digits, __m256i inputs) { return _mm256_dpbusd_avx_epi32(sum, digits, inputs); }
__m256i widened(__m256i partial) { return partial; }
#else
// Sums of two products of a digit are at most 2 * 2 * 128 in size: sixteen bits hold sixty-three of them.
constexpr size_t kRun = 15;

__m256i gather(__m256i sum, __m256i digits, __m256i inputs) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(digits, inputs));
}
__m256i widened(__m256i partial) { return _mm256_madd_epi16(partial, _mm256_set1_epi16(1)); }
#endif

// P vectors of 8 rows times T tokens, from a group's row 8 * H.
template <size_t P, size_t T>
void ternary_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                  int32_t* out) {
    const __m256i three = _mm256_set1_epi8(3);
    __m256i totals[P][T];
    for (size_t p = 0; p < P; ++p)
        for (size_t t = 0; t < T; ++t) totals[p][t] = _mm256_set1_epi32(start[t]);
    while (blocks) {
        const size_t run = blocks < kRun ? blocks : kRun;
        __m256i sums[P][T];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; ++p)
#pragma GCC unroll 6
            for (size_t t = 0; t < T; ++t) sums[p][t] = _mm256_setzero_si256();
        for (size_t block = 0; block < run; ++block, group += 256, x += 16) {
            if (T == 1)
#pragma GCC unroll 4
                for (size_t p = 0; p < P; p += 2)
                    _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 32 * p, _MM_HINT_T0);
#pragma GCC unroll 4
            for (size_t f = 0; f < 4; ++f) {
                __m256i inputs[T];
#pragma GCC unroll 6
                for (size_t t = 0; t < T; ++t) inputs[t] = broadcast4(x + t * stride + 4 * f);
#pragma GCC unroll 8
                for (size_t p = 0; p < P; ++p) {
                    const __m256i digits = _mm256_and_si256(_mm256_srli_epi32(load(group + 32 * p), int(2 * f)), three);
#pragma GCC unroll 6
                    for (size_t t = 0; t < T; ++t) sums[p][t] = gather(sums[p][t], digits, inputs[t]);
                }
            }
        }
        for (size_t p = 0; p < P; ++p)
            for (size_t t = 0; t < T; ++t) totals[p][t] = _mm256_add_epi32(totals[p][t], widened(sums[p][t]));
        blocks -= run;
    }
    for (size_t p = 0; p < P; ++p)
        for (size_t t = 0; t < T; ++t) store(out + t * kRows + 8 * p, totals[p][t]);
}

// Passes over the group, each as wide as the registers hold sums for.
template <size_t P, size_t T>
void ternary_passes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                    int32_t* out) {
    for (size_t p = 0; p < 8; p += P) ternary_tile<P, T>(group + 32 * p, blocks, x, stride, start, out + 8 * p);
}

void ternary(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
             int32_t* out) {
    switch (tokens) {
        case 1: return ternary_passes<8, 1>(group, blocks, x, stride, start, out);
        case 2: return ternary_passes<4, 2>(group, blocks, x, stride, start, out);
        case 3: return ternary_passes<2, 3>(group, blocks, x, stride, start, out);
        case 4: return ternary_passes<2, 4>(group, blocks, x, stride, start, out);
    }
}

#if defined(__AVXVNNI__)
__m256i gather_signed(__m256i sum, __m256i magnitudes, __m256i weights) {
    return _mm256_dpbusd_avx_epi32(sum, magnitudes, weights);
}
#else
__m256i gather_signed(__m256i sum, __m256i magnitudes, __m256i weights) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitudes, weights);  // at most 2 * 128 * 127, which 16 bits hold
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// P vectors of 8 rows times T tokens. An input may be -128, which has no opposite in a byte: so the inputs go first,
// as unsigned magnitudes, and the weights, which are never -128, take their signs.
// Adds to what stands in `out`.
template <size_t P, size_t T>
void bytes_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, int32_t* out) {
    __m256i sums[P][T];
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (size_t t = 0; t < T; ++t) sums[p][t] = load(out + t * kRows + 8 * p);
    for (size_t block = 0; block < 4 * blocks; ++block, group += 256, x += 4) {
        __m256i inputs[T], magnitudes[T];
#pragma GCC unroll 2
        for (size_t t = 0; t < T; ++t) {
            inputs[t] = broadcast4(x + t * stride);
            magnitudes[t] = _mm256_abs_epi8(inputs[t]);
        }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; ++p) {
            if (p % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 32 * p, _MM_HINT_T0);
            const __m256i weights = load(group + 32 * p);
#pragma GCC unroll 2
            for (size_t t = 0; t < T; ++t)
                sums[p][t] = gather_signed(sums[p][t], magnitudes[t], _mm256_sign_epi8(weights, inputs[t]));
        }
    }
    for (size_t p = 0; p < P; ++p)
        for (size_t t = 0; t < T; ++t) store(out + t * kRows + 8 * p, sums[p][t]);
}

// Two tokens need more sums than there are registers: two passes over each stretch, which is then in the nearest cache.
void bytes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t*,
           int32_t* out) {
    constexpr size_t stretch = 8;
    __builtin_memset(out, 0, tokens * kRows * sizeof(int32_t));
    for (size_t done = 0; done < blocks; done += stretch) {
        const size_t count = blocks - done < stretch ? blocks - done : stretch;
        const uint8_t* from = group + done * kColumns * kRows;
        const int8_t* inputs = x + done * kColumns;
        size_t token = 0;
        for (; token + 2 <= tokens; token += 2)
            for (size_t p = 0; p < 8; p += 4)
                bytes_tile<4, 2>(from + 32 * p, count, inputs + token * stride, stride, out + token * kRows + 8 * p);
        if (token < tokens) bytes_tile<8, 1>(from, count, inputs + token * stride, stride, out + token * kRows);
    }
}

template <Float kind>
__m256 stored(const uint8_t* data, size_t count) {
    if (kind == Float::f32) return load_first(reinterpret_cast<const float*>(data), count);
    __m128i halves;
    if (count >= 8) {
        halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
    } else {
        uint16_t last[8] = {};
        __builtin_memcpy(last, data, 2 * count);
        halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(last));
    }
    if (kind == Float::f16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// R rows times T tokens: 8 columns side by side in each sum.
template <Float kind, size_t R, size_t T>
void dense_tile(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    __m256 sums[R][T];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) sums[r][t] = _mm256_setzero_ps();
    for (size_t column = 0; column < columns; column += 8) {
        __m256 weights[R];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r) {
            const uint8_t* from = data + r * row_bytes + column * width;
            if (T == 1) _mm_prefetch(reinterpret_cast<const char*>(from) + R * row_bytes, _MM_HINT_T0);
            weights[r] = stored<kind>(from, columns - column);
        }
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
            const __m256 inputs = load_first(x + t * stride + column, columns - column);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) sums[r][t] = _mm256_fmadd_ps(weights[r], inputs, sums[r][t]);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t t = 0; t < T; ++t) out[t * kRows + r] = sum_of(sums[r][t]);
}

template <Float kind>
void dense_of(const uint8_t* data, size_t row_bytes, size_t rows, size_t columns, const float* x, size_t stride,
              size_t tokens, float* out) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        size_t token = 0;
        const uint8_t* from = data + row * row_bytes;
        for (; token + 2 <= tokens; token += 2)
            dense_tile<kind, 4, 2>(from, row_bytes, columns, x + token * stride, stride, out + token * kRows + row);
        if (token < tokens)
            dense_tile<kind, 4, 1>(from, row_bytes, columns, x + token * stride, stride, out + token * kRows + row);
    }
    for (; row < rows; ++row)
        for (size_t token = 0; token < tokens; ++token)
            dense_tile<kind, 1, 1>(data + row * row_bytes, row_bytes, columns, x + token * stride, stride,
                                   out + token * kRows + row);
}

void dense(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
           size_t stride, size_t tokens, float* out) {
    switch (kind) {
        case Float::f16: return dense_of<Float::f16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::bf16: return dense_of<Float::bf16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::f32: return dense_of<Float::f32>(data, row_bytes, rows, columns, x, stride, tokens, out);
    }
}

void finish(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add, float* out) {
    const __m256 shared = _mm256_set1_ps(scale[0] / divisor), base = _mm256_set1_ps(256.0f);
    for (size_t row = 0; row < kRows; row += 8) {
        __m256 sum = _mm256_cvtepi32_ps(load(sums + row));
        for (size_t plane = 1; plane < planes; ++plane)
            sum = _mm256_fmadd_ps(sum, base, _mm256_cvtepi32_ps(load(sums + plane * kRows + row)));
        const __m256 factor = step ? _mm256_div_ps(_mm256_loadu_ps(scale + row), _mm256_set1_ps(divisor)) : shared;
        __m256 value = _mm256_mul_ps(sum, factor);
        if (add) value = _mm256_add_ps(_mm256_loadu_ps(out + row), value);
        _mm256_storeu_ps(out + row, value);
    }
}

void norm(const float* x, const float* weight, double eps, size_t count, float* out) {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    for (size_t i = 0; i < count; i += 8) {
        const __m256 values = load_first(x + i, count - i);
        const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
        const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
        low = _mm256_fmadd_pd(a, a, low);
        high = _mm256_fmadd_pd(b, b, high);
    }
    const __m256d both = _mm256_add_pd(low, high);
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
    const double sum = _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    const double root = _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(sum / double(count) + eps)));
    const __m256 inverse = _mm256_set1_ps(float(1.0 / root));
    for (size_t i = 0; i < count; i += 8) {
        const __m256 values = _mm256_mul_ps(load_first(x + i, count - i), inverse);
        store_first(out + i, count - i, _mm256_mul_ps(values, load_first(weight + i, count - i)));
    }
}

float largest(const float* x, size_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();  // as bits, magnitudes are in order, and a NaN is above them all
    for (size_t i = 0; i < count; i += 8)
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(load_first(x + i, count - i)), magnitude));
    int32_t lanes[8], best = 0;
    store(lanes, most);
    for (int32_t lane : lanes) best = lane > best ? lane : best;
    float value;
    __builtin_memcpy(&value, &best, sizeof value);
    return value;
}

// The nearest integers within ±limit; a NaN as -limit.
__m256i rounded(__m256 values, __m256 scale, float limit) {
    values = _mm256_max_ps(_mm256_mul_ps(values, scale), _mm256_set1_ps(-limit));
    return _mm256_cvtps_epi32(_mm256_min_ps(values, _mm256_set1_ps(limit)));
}

void store_bytes(int8_t* to, size_t count, __m256i values) {
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(pairs, pairs));
    if (count >= 8)
        __builtin_memcpy(to, &bytes, 8);
    else
        __builtin_memcpy(to, &bytes, count);
}

int32_t quantize(const float* x, float scale, size_t count, int8_t* out) {
    const __m256 factor = _mm256_set1_ps(scale);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < count; i += 8) {
        __m256i digits = rounded(load_first(x + i, count - i), factor, 127);
        if (count - i < 8) digits = _mm256_and_si256(digits, first_lanes(count - i));
        sum = _mm256_add_epi32(sum, digits);
        store_bytes(out + i, count - i, digits);
    }
    return sum_of(sum);
}

void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums) {
    const __m256 factor = _mm256_set1_ps(scale);
    __m256i total[3] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < count; i += 8) {
        __m256i rest = rounded(load_first(x + i, count - i), factor, largest_of(planes));
        if (count - i < 8) rest = _mm256_and_si256(rest, first_lanes(count - i));
        for (size_t plane = planes; plane-- > 0;) {
            const __m256i digits = _mm256_srai_epi32(_mm256_slli_epi32(rest, 24), 24);
            rest = _mm256_srai_epi32(_mm256_sub_epi32(rest, digits), 8);
            store_bytes(out + plane * stride + i, count - i, digits);
            total[plane] = _mm256_add_epi32(total[plane], digits);
        }
    }
    for (size_t plane = 0; plane < planes; ++plane) sums[plane] = sum_of(total[plane]);
}

// 2 ** n for n from -252 to 254, in two steps, since the exponent of one float reaches only half as far.
__m256 times_power(__m256 x, __m256i n) {
    const __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half), bias = _mm256_set1_epi32(127);
    x = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

// To about an ulp and a half: 2 ** n times a polynomial in what is left. Comparisons let a NaN through.
__m256 exponential(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(100.0f), _mm256_max_ps(_mm256_set1_ps(-110.0f), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return times_power(p, _mm256_cvtps_epi32(n));
}

__m256 activated(Gate kind, __m256 x) {
    if (kind == Gate::relu2) {
        const __m256 positive = _mm256_max_ps(_mm256_setzero_ps(), x);  // the second operand where it is a NaN
        return _mm256_mul_ps(positive, positive);
    }
    __m256 inner = x;
    if (kind == Gate::gelu) {  // its tanh is a logistic of twice the argument
        const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
        inner = _mm256_mul_ps(_mm256_set1_ps(1.5957691f), _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x));
    }
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(x, _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), inner))));
}

void activate(Gate kind, float* gate, const float* up, size_t count) {
    for (size_t i = 0; i < count; i += 8) {
        const __m256 value = activated(kind, load_first(gate + i, count - i));
        store_first(gate + i, count - i, _mm256_mul_ps(value, load_first(up + i, count - i)));
    }
}

template <Float kind>
void widen_of(const uint8_t* data, float scale, size_t count, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    for (size_t i = 0; i < count; i += 8)
        store_first(out + i, count - i, _mm256_mul_ps(stored<kind>(data + i * width, count - i), _mm256_set1_ps(scale)));
}

void widen(const uint8_t* data, Float kind, float scale, size_t count, float* out) {
    switch (kind) {
        case Float::f16: return widen_of<Float::f16>(data, scale, count, out);
        case Float::bf16: return widen_of<Float::bf16>(data, scale, count, out);
        case Float::f32: return widen_of<Float::f32>(data, scale, count, out);
    }
}

void narrow(const float* x, size_t count, uint16_t* out) {
    const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
    for (size_t i = 0; i < count; i += 8) {
        const __m256 values = _mm256_max_ps(least, _mm256_min_ps(most, load_first(x + i, count - i)));
        const __m128i halves = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __builtin_memcpy(out + i, &halves, 2 * (count - i < 8 ? count - i : 8));
    }
}

// Elements from the `index`-th on of what a page holds: W for float32, else float16.
template <bool W>
__m256 held(const uint8_t* data, size_t index) {
    if (W) return _mm256_loadu_ps(reinterpret_cast<const float*>(data) + index);
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 2 * index)));
}

// Scores of R rows at a page's 32 positions, which stand side by side.
template <bool W, size_t R>
void scores(const Attention& call, size_t row, const uint8_t* keys) {
    __m256 sums[R][4];
#pragma GCC unroll 2
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t v = 0; v < 4; ++v) sums[r][v] = _mm256_setzero_ps();
    const float* queries = call.queries + row * call.padded;
    for (size_t i = 0; i < call.size; ++i) {
        __m256 query[R];
#pragma GCC unroll 2
        for (size_t r = 0; r < R; ++r) query[r] = _mm256_set1_ps(queries[r * call.padded + i]);
#pragma GCC unroll 4
        for (size_t v = 0; v < 4; ++v) {
            const __m256 key = held<W>(keys, i * kPositions + 8 * v);
#pragma GCC unroll 2
            for (size_t r = 0; r < R; ++r) sums[r][v] = _mm256_fmadd_ps(query[r], key, sums[r][v]);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t v = 0; v < 4; ++v) _mm256_storeu_ps(call.weights + (row + r) * kPositions + 8 * v, sums[r][v]);
}

// Scores of one row as weights; what was mixed so far fades when a higher peak appears. Gives the fading.
float soften(const Attention& call, size_t row, size_t from, size_t to) {
    float* weights = call.weights + row * kPositions;
    float peak = call.peak[row];
    for (size_t i = from; i < to; ++i) peak = weights[i] > peak ? weights[i] : peak;
    for (size_t i = 0; i < from; ++i) weights[i] = -__builtin_inff();
    for (size_t i = to; i < kPositions; ++i) weights[i] = -__builtin_inff();
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i < kPositions; i += 8) {
        const __m256 score = _mm256_loadu_ps(weights + i);
        const __m256 seen = _mm256_cmp_ps(score, _mm256_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ);
        const __m256 weight = _mm256_and_ps(exponential(_mm256_sub_ps(score, _mm256_set1_ps(peak))), seen);
        sum = _mm256_add_ps(sum, weight);
        _mm256_storeu_ps(weights + i, weight);
    }
    const float fade = _mm256_cvtss_f32(exponential(_mm256_set1_ps(call.peak[row] - peak)));
    call.peak[row] = peak;
    call.total[row] = call.total[row] * fade + sum_of(sum);
    return fade;
}

// Values of positions `from` to before `to`, weighted, onto V times 8 elements of what R rows have mixed.
template <bool W, size_t R, size_t V>
void mix_part(const Attention& call, size_t row, const uint8_t* values, size_t at, const float* fades, size_t from,
              size_t to) {
    __m256 sums[R][V];
    float* mixed = call.mixed + row * call.padded + at;
    const float* weights = call.weights + row * kPositions;
#pragma GCC unroll 2
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v)
            sums[r][v] = _mm256_mul_ps(_mm256_loadu_ps(mixed + r * call.padded + 8 * v), _mm256_set1_ps(fades[r]));
    for (size_t position = from; position < to; ++position) {
        __m256 weight[R];
#pragma GCC unroll 2
        for (size_t r = 0; r < R; ++r) weight[r] = _mm256_set1_ps(weights[r * kPositions + position]);
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) {
            const __m256 value = held<W>(values, position * call.padded + at + 8 * v);
#pragma GCC unroll 2
            for (size_t r = 0; r < R; ++r) sums[r][v] = _mm256_fmadd_ps(weight[r], value, sums[r][v]);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t v = 0; v < V; ++v) _mm256_storeu_ps(mixed + r * call.padded + 8 * v, sums[r][v]);
}

template <bool W, size_t R>
void mix(const Attention& call, size_t row, const uint8_t* values, const float* fades, size_t from, size_t to) {
    size_t at = 0;
    for (; at + 32 <= call.padded; at += 32) mix_part<W, R, 4>(call, row, values, at, fades, from, to);
    if (at < call.padded) mix_part<W, R, 2>(call, row, values, at, fades, from, to);
}

// One page for R rows. Rows that see different parts of it are mixed one by one, so that what one does not see
// cannot reach it, whatever it is.
template <bool W, size_t R>
void page_tile(const Attention& call, size_t row, size_t page, const uint8_t* keys) {
    const int64_t start = int64_t(page * kPositions), end = start + int64_t(kPositions);
    const uint8_t* values = keys + (W ? 4 : 2) * call.size * kPositions;
    size_t from[R], to[R];
    bool same = true;
    for (size_t r = 0; r < R; ++r) {
        const int64_t first = call.first[row + r], last = call.last[row + r];
        from[r] = size_t((first > start ? first : start) - start);
        to[r] = last <= start || first >= end ? 0 : size_t((last < end ? last : end) - start);
        same = same && from[r] == from[0] && to[r] == to[0];
    }
    scores<W, R>(call, row, keys);
    float fades[R];
    for (size_t r = 0; r < R; ++r)
        if (from[r] < to[r]) fades[r] = soften(call, row + r, from[r], to[r]);
    if (same) {
        if (from[0] < to[0]) mix<W, R>(call, row, values, fades, from[0], to[0]);
        return;
    }
    for (size_t r = 0; r < R; ++r)
        if (from[r] < to[r]) mix<W, 1>(call, row + r, values, fades + r, from[r], to[r]);
}

template <bool W>
void attend_over(const Attention& call) {
    int64_t first = call.first[0], last = call.last[0];
    for (size_t row = 0; row < call.rows; ++row) {
        first = call.first[row] < first ? call.first[row] : first;
        last = call.last[row] > last ? call.last[row] : last;
        call.peak[row] = -__builtin_inff();
        call.total[row] = 0;
        for (size_t i = 0; i < call.padded; ++i) call.mixed[row * call.padded + i] = 0;
    }
    for (size_t page = size_t(first) / kPositions; page * kPositions < size_t(last); ++page) {
        const uint8_t* keys = call.pages[page] + call.offset;
        size_t row = 0;
        for (; row + 2 <= call.rows; row += 2) page_tile<W, 2>(call, row, page, keys);
        for (; row < call.rows; ++row) page_tile<W, 1>(call, row, page, keys);
    }
    for (size_t row = 0; row < call.rows; ++row) {
        const __m256 total = _mm256_set1_ps(call.total[row]);
        for (size_t i = 0; i < call.padded; i += 8) {
            float* mixed = call.mixed + row * call.padded + i;
            _mm256_storeu_ps(mixed, _mm256_div_ps(_mm256_loadu_ps(mixed), total));
        }
    }
}

void attend(const Attention* call) { call->wide ? attend_over<true>(*call) : attend_over<false>(*call); }

}  // namespace

#if defined(__AVXVNNI__)
const Kernels kAvxVnni = {"avxvnni", 
#else
const Kernels kAvx2 = {"avx2", 
#endif
                          Order::two_bits, 4, ternary, nullptr, nullptr, bytes,  dense,    finish, norm,
                          largest,         quantize, split,  activate, widen, narrow, attend};

}  // namespace bitnet
