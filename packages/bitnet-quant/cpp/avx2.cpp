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

// Vectors of 8 rows that a pass takes with one token to four; measured.
#if defined(__AVXVNNI__)
constexpr size_t kPass[] = {8, 4, 2, 2};
constexpr size_t kRun = size_t(-1);  // blocks that a partial sum may hold

__m256i gather(__m256i sum, __m256i digits, __m256i inputs) { return _mm256_dpbusd_avx_epi32(sum, digits, inputs); }
__m256i widened(__m256i partial) { return partial; }
#else
constexpr size_t kPass[] = {8, 2, 1, 1};
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

template <size_t T>
void ternary_passes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                    int32_t* out) {
    constexpr size_t wide = kPass[T - 1];
    for (size_t p = 0; p < 8; p += wide) ternary_tile<wide, T>(group + 32 * p, blocks, x, stride, start, out + 8 * p);
}

void ternary(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
             int32_t* out) {
    switch (tokens) {
        case 1: return ternary_passes<1>(group, blocks, x, stride, start, out);
        case 2: return ternary_passes<2>(group, blocks, x, stride, start, out);
        case 3: return ternary_passes<3>(group, blocks, x, stride, start, out);
        case 4: return ternary_passes<4>(group, blocks, x, stride, start, out);
    }
}

#include "avx2_bytes.h"

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
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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
        store_first(out + i, count - i,
                    _mm256_mul_ps(stored<kind>(data + i * width, count - i), _mm256_set1_ps(scale)));
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

#include "avx2_attention.h"
#include "avx2_packing.h"
#include "avx2_spread.h"

}  // namespace

#if defined(__AVXVNNI__)
const Kernels kAvxVnni = {"avxvnni",
#else
const Kernels kAvx2 = {"avx2",
#endif
                          Order::two_bits, 4,      ternary, nullptr,       nullptr,  bytes, dense,
                          spread,          finish, norm,    largest,       quantize, split, activate,
                          widen,           narrow, attend,  unpack_digits, place};

}  // namespace bitnet
