// Digits into the order of the kernels, for avx512.cpp, which includes it in its own namespace.
#include "packing.h"

// Sixteen rows at sixteen columns: the f-th vector holds four digits of each row, at columns 4 * f on.
struct Fields {
    __m512i at[4];
};

Fields fields_of(const uint8_t* digits, size_t stride) {
    __m512i rows[4];  // the i-th has row 4 * l + i in lane l
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
        rows[i] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (size_t l = 0; l < 4; ++l) {
            const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(digits + (4 * l + i) * stride));
            rows[i] = _mm512_mask_broadcast_i32x4(rows[i], __mmask16(15u << 4 * l), part);
        }
    }
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    return {{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
             _mm512_unpackhi_epi64(b, d)}};
}

#if defined(__AVX512VBMI__)

struct Kept {
    uint8_t bytes[64];
};

constexpr Kept make_kept() {
    Kept kept{};
    for (size_t i = 0; i < 40; ++i) kept.bytes[i] = uint8_t(i / 5 * 8 + i % 5);
    return kept;
}

alignas(64) constexpr Kept kKept = make_kept();

// Four numbers of five bits a row; two rows' are the low forty bits of a quadword, of which five bytes are kept.
uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out) {
    const __m512i keep = load(kKept.bytes), twenty = _mm512_set1_epi64(0xfffff);
    __m512i all = _mm512_setzero_si512();
    for (size_t column = 0; column < columns; column += 12, out += 160) {
        const Fields fields = fields_of(digits + column, stride);
        const __m512i a = fields.at[0], b = fields.at[1], c = fields.at[2];
        all = _mm512_or_si512(all, _mm512_and_si512(a, _mm512_srli_epi32(a, 1)));
        all = _mm512_or_si512(all, _mm512_and_si512(b, _mm512_srli_epi32(b, 1)));
        all = _mm512_or_si512(all, _mm512_and_si512(c, _mm512_srli_epi32(c, 1)));
        // a + 3 b + 9 c: no byte overflows.
        __m512i numbers = _mm512_add_epi8(_mm512_add_epi8(a, b), _mm512_add_epi8(c, _mm512_slli_epi32(b, 1)));
        numbers = _mm512_add_epi8(numbers, _mm512_slli_epi32(c, 3));
        const __m512i pairs = _mm512_maddubs_epi16(numbers, _mm512_set1_epi16(32 << 8 | 1));
        const __m512i fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(1024 << 16 | 1));
        const __m512i both =
            _mm512_or_si512(_mm512_and_si512(fours, twenty), _mm512_slli_epi64(_mm512_srli_epi64(fours, 32), 20));
        _mm512_mask_storeu_epi64(out, 0x1f, _mm512_permutexvar_epi8(keep, both));
    }
    return uint32_t(_mm512_reduce_or_epi32(all)) & 0x01010101;
}

#else

uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out) {
    __m512i all = _mm512_setzero_si512();
    for (size_t column = 0; column < columns; column += 16, out += 256) {
        const Fields fields = fields_of(digits + column, stride);
        const __m512i low = _mm512_or_si512(fields.at[0], _mm512_slli_epi32(fields.at[1], 2));
        const __m512i high = _mm512_or_si512(fields.at[2], _mm512_slli_epi32(fields.at[3], 2));
        const __m512i packed = _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
        all = _mm512_or_si512(all, _mm512_and_si512(packed, _mm512_srli_epi32(packed, 1)));
        _mm512_storeu_si512(out, packed);
    }
    return uint32_t(_mm512_reduce_or_epi32(all)) & 0x55555555;
}

#endif
