// Int8 weights for avx2.cpp, which includes this where its own functions are known.
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
