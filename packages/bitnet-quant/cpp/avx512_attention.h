// The attention of avx512.cpp, which includes it where its own functions are known.
constexpr size_t kLanes = 16;

// Elements from the `index`-th on of what a page holds, as they stand there.
template <Held H>
__m512 held(const uint8_t* data, size_t index) {
    if (H == Held::f32) return _mm512_loadu_ps(data + 4 * index);
    if (H == Held::int8)
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + index))));
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 2 * index)));
}

// Scores of R rows at a page's 32 positions, which stand side by side.
template <Held H, size_t R>
void scores(const Attention& call, size_t row, const uint8_t* keys) {
    __m512 sums[R][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const float* queries = call.queries + row * call.padded;
    for (size_t i = 0; i < call.size; ++i) {
        const __m512 low = held<H>(keys, i * kPositions), high = held<H>(keys, i * kPositions + 16);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r) {
            const __m512 query = _mm512_set1_ps(queries[r * call.padded + i]);
            sums[r][0] = _mm512_fmadd_ps(query, low, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(query, high, sums[r][1]);
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
        _mm512_storeu_ps(call.weights + (row + r) * kPositions, sums[r][0]);
        _mm512_storeu_ps(call.weights + (row + r) * kPositions + 16, sums[r][1]);
    }
}

// Scores of one row as weights; what was mixed so far fades when a higher peak appears. Gives the fading.
float soften(const Attention& call, size_t row, size_t from, size_t to) {
    float* weights = call.weights + row * kPositions;
    const uint32_t seen = uint32_t((uint64_t(1) << to) - (uint64_t(1) << from));
    const __mmask16 a = __mmask16(seen), b = __mmask16(seen >> 16);
    const __m512 never = _mm512_set1_ps(-__builtin_inff());
    const __m512 low = _mm512_mask_loadu_ps(never, a, weights), high = _mm512_mask_loadu_ps(never, b, weights + 16);
    const float old = call.peak[row], best = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
    const float peak = best > old ? best : old;
    const __m512 level = _mm512_set1_ps(peak);
    const __m512 first = _mm512_maskz_mov_ps(a, exponential(_mm512_sub_ps(low, level)));
    const __m512 second = _mm512_maskz_mov_ps(b, exponential(_mm512_sub_ps(high, level)));
    _mm512_storeu_ps(weights, first);
    _mm512_storeu_ps(weights + 16, second);
    const float fade = _mm512_cvtss_f32(exponential(_mm512_set1_ps(old - peak)));
    call.peak[row] = peak;
    call.total[row] = call.total[row] * fade + _mm512_reduce_add_ps(_mm512_add_ps(first, second));
    return fade;
}

// Values of positions `from` to before `to`, weighted, onto what R rows have mixed: 32 elements at a time.
template <Held H, size_t R, size_t V>
void mix_part(const Attention& call, size_t row, const uint8_t* values, size_t at, const float* fades, size_t from,
              size_t to) {
    __m512 sums[R][V];
    float* mixed = call.mixed + row * call.padded + at;
    const float* weights = call.weights + row * kPositions;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (size_t v = 0; v < V; ++v)
            sums[r][v] = _mm512_mul_ps(_mm512_loadu_ps(mixed + r * call.padded + 16 * v), _mm512_set1_ps(fades[r]));
    for (size_t position = from; position < to; ++position) {
        __m512 value[V];
#pragma GCC unroll 2
        for (size_t v = 0; v < V; ++v) value[v] = held<H>(values, position * call.padded + at + 16 * v);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r) {
            const __m512 weight = _mm512_set1_ps(weights[r * kPositions + position]);
#pragma GCC unroll 2
            for (size_t v = 0; v < V; ++v) sums[r][v] = _mm512_fmadd_ps(weight, value[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (size_t v = 0; v < V; ++v) _mm512_storeu_ps(mixed + r * call.padded + 16 * v, sums[r][v]);
}

void divide(float* values, size_t count, float by) {
    const __m512 divisor = _mm512_set1_ps(by);
    for (size_t i = 0; i < count; i += kLanes)
        _mm512_storeu_ps(values + i, _mm512_div_ps(_mm512_loadu_ps(values + i), divisor));
}

constexpr size_t kTall = 8, kLow = 4;

#include "attention_pages.h"

void attend(const Attention* call) {
    switch (call->held) {
        case Held::f16: return attend_over<Held::f16>(*call);
        case Held::f32: return attend_over<Held::f32>(*call);
        case Held::int8: return attend_over<Held::int8>(*call);
    }
}
