// Digits into the order of the kernels, for avx2.cpp, which includes it in its own namespace.
#include "packing.h"

// Eight rows at sixteen columns; gives what is not zero if a digit is 3.
__m256i place_eight(const uint8_t* digits, size_t stride, uint8_t* out) {
    const auto row = [&](size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(digits + i * stride)); };
    __m256i rows[4];  // the i-th has rows i and 4 + i
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) rows[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(4 + i), 1);
    const __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]), b = _mm256_unpackhi_epi32(rows[0], rows[1]);
    const __m256i c = _mm256_unpacklo_epi32(rows[2], rows[3]), d = _mm256_unpackhi_epi32(rows[2], rows[3]);
    const __m256i low = _mm256_or_si256(_mm256_unpacklo_epi64(a, c), _mm256_slli_epi32(_mm256_unpackhi_epi64(a, c), 2));
    const __m256i high =
        _mm256_or_si256(_mm256_unpacklo_epi64(b, d), _mm256_slli_epi32(_mm256_unpackhi_epi64(b, d), 2));
    const __m256i packed = _mm256_or_si256(low, _mm256_slli_epi32(high, 4));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
    return _mm256_and_si256(packed, _mm256_srli_epi32(packed, 1));
}

uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out) {
    __m256i all = _mm256_setzero_si256();
    for (size_t column = 0; column < columns; column += 16, out += 256) {
        all = _mm256_or_si256(all, place_eight(digits + column, stride, out));
        all = _mm256_or_si256(all, place_eight(digits + column + 8 * stride, stride, out + 32));
    }
    return !_mm256_testz_si256(all, _mm256_set1_epi32(0x55555555));
}
