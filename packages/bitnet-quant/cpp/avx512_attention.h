// The attention of avx512.cpp, which includes it where its own functions are known.
// Elements from the `index`-th on of what a page holds: W for float32, else float16.
template <bool W>
__m512 held(const uint8_t* data, size_t index) {
    if (W) return _mm512_loadu_ps(data + 4 * index);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 2 * index)));
}

// Scores of R rows at a page's 32 positions, which stand side by side.
template <bool W, size_t R>
void scores(const Attention& call, size_t row, const uint8_t* keys) {
    __m512 sums[R][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const float* queries = call.queries + row * call.padded;
    for (size_t i = 0; i < call.size; ++i) {
        const __m512 low = held<W>(keys, i * kPositions), high = held<W>(keys, i * kPositions + 16);
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
template <bool W, size_t R, size_t V>
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
        for (size_t v = 0; v < V; ++v) value[v] = held<W>(values, position * call.padded + at + 16 * v);
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

template <bool W, size_t R>
void mix(const Attention& call, size_t row, const uint8_t* values, const float* fades, size_t from, size_t to) {
    size_t at = 0;
    for (; at + 32 <= call.padded; at += 32) mix_part<W, R, 2>(call, row, values, at, fades, from, to);
    if (at < call.padded) mix_part<W, R, 1>(call, row, values, at, fades, from, to);
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
        for (size_t i = 0; i < call.padded; i += 16)
            _mm512_storeu_ps(call.mixed + row * call.padded + i, _mm512_setzero_ps());
    }
    for (size_t page = size_t(first) / kPositions; page * kPositions < size_t(last); ++page) {
        const uint8_t* keys = call.pages[page] + call.offset;
        size_t row = 0;
        for (; row + 8 <= call.rows; row += 8) page_tile<W, 8>(call, row, page, keys);
        for (; row + 4 <= call.rows; row += 4) page_tile<W, 4>(call, row, page, keys);
        for (; row < call.rows; ++row) page_tile<W, 1>(call, row, page, keys);
    }
    for (size_t row = 0; row < call.rows; ++row) {
        const __m512 total = _mm512_set1_ps(call.total[row]);
        for (size_t i = 0; i < call.padded; i += 16) {
            float* mixed = call.mixed + row * call.padded + i;
            _mm512_storeu_ps(mixed, _mm512_div_ps(_mm512_loadu_ps(mixed), total));
        }
    }
}

void attend(const Attention* call) { call->wide ? attend_over<true>(*call) : attend_over<false>(*call); }
