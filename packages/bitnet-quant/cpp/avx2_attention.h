// The attention of avx2.cpp, which includes it where its own functions are known.
constexpr size_t kLanes = 8;

// Elements from the `index`-th on of what a page holds, as they stand there.
template <Held H>
__m256 held(const uint8_t* data, size_t index) {
    if (H == Held::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(data) + index);
    if (H == Held::int8)
        return _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + index))));
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 2 * index)));
}

// Scores of R rows at a page's 32 positions, which stand side by side.
template <Held H, size_t R>
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
            const __m256 key = held<H>(keys, i * kPositions + 8 * v);
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
template <Held H, size_t R, size_t V>
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
            const __m256 value = held<H>(values, position * call.padded + at + 8 * v);
#pragma GCC unroll 2
            for (size_t r = 0; r < R; ++r) sums[r][v] = _mm256_fmadd_ps(weight[r], value, sums[r][v]);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t v = 0; v < V; ++v) _mm256_storeu_ps(mixed + r * call.padded + 8 * v, sums[r][v]);
}

void divide(float* values, size_t count, float by) {
    const __m256 divisor = _mm256_set1_ps(by);
    for (size_t i = 0; i < count; i += kLanes)
        _mm256_storeu_ps(values + i, _mm256_div_ps(_mm256_loadu_ps(values + i), divisor));
}

constexpr size_t kTall = 2, kLow = 2;

#include "attention_pages.h"

void attend(const Attention* call) {
    switch (call->held) {
        case Held::f16: return attend_over<Held::f16>(*call);
        case Held::f32: return attend_over<Held::f32>(*call);
        case Held::int8: return attend_over<Held::int8>(*call);
    }
}
