// The denser order, for avx512.cpp where it has VBMI; it includes this where its own functions are known.
// How 40 bytes become 64 numbers of five bits, and each number three digits, whatever stands above its bits.
struct Tables {
    uint8_t spread[64], shifts[64], digits[3][64];
};

constexpr Tables make_tables() {
    Tables tables{};
    for (size_t i = 0; i < 64; ++i) {
        tables.spread[i] = uint8_t(i / 8 * 5 + i % 8);  // eight numbers are five bytes: one quadword has them all
        tables.shifts[i] = uint8_t(i % 8 * 5);
        for (size_t f = 0, rest = i % 32; f < 3; ++f, rest /= 3) tables.digits[f][i] = uint8_t(rest % 3);
    }
    return tables;
}

alignas(64) constexpr Tables kTables = make_tables();

// The numbers of 16 rows as bytes.
__m512i numbers_of(const uint8_t* packed) {
    const __m512i spread = _mm512_permutexvar_epi8(load(kTables.spread), _mm512_maskz_loadu_epi64(0x1f, packed));
    return _mm512_multishift_epi64_epi8(load(kTables.shifts), spread);
}

// What is made early stays there, and is not moved to where it is used.
__m512i early(__m512i value) {
#if defined(__GNUC__)
    asm volatile("" : "+v"(value));
#endif
    return value;
}

// P times 16 rows times T tokens: each number is looked up three times, once for all tokens. Between the products of
// one digit the next is looked up, and the numbers of the next block are unpacked: no product waits for either.
template <size_t P, size_t T>
void five_bits_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                    int32_t* out) {
    constexpr size_t chains = T == 1 ? 3 : 1;  // one token alone would wait for its own sums
    const __m512i digits[3] = {load(kTables.digits[0]), load(kTables.digits[1]), load(kTables.digits[2])};
    __m512i sums[chains][T][P], numbers[P], weights[P], next[P];
#pragma GCC unroll 12
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < P; ++p) {
            sums[0][t][p] = _mm512_set1_epi32(start[t]);
            for (size_t c = 1; c < chains; ++c) sums[c][t][p] = _mm512_setzero_si512();
        }
#pragma GCC unroll 4
    for (size_t p = 0; p < P; ++p) {
        numbers[p] = numbers_of(group + 40 * p);
        weights[p] = _mm512_permutexvar_epi8(numbers[p], digits[0]);
    }
    const auto advance = [&](size_t f, size_t p) {
        next[p] = early(_mm512_permutexvar_epi8(numbers[p], digits[(f + 1) % 3]));
        if (f == 1) numbers[p] = early(numbers_of(group + 40 * p));
    };
    for (size_t block = 0; block < blocks; ++block, x += 12) {
#pragma GCC unroll 3
        for (size_t line = 0; line < 3; ++line)
            _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 64 * line, _MM_HINT_T0);
        group += block + 1 < blocks ? 160 : 0;  // the last is unpacked once more, and not used
#pragma GCC unroll 3
        for (size_t f = 0; f < 3; ++f) {
#pragma GCC unroll 12
            for (size_t t = 0; t < T; ++t) {
                const __m512i inputs = broadcast4(x + t * stride + 4 * f);
#pragma GCC unroll 4
                for (size_t p = 0; p < P; ++p) {
                    __m512i& sum = sums[f % chains][t][p];
                    sum = _mm512_dpbusd_epi32(sum, weights[p], inputs);
                    if ((t * P + p) % T == 0) advance(f, (t * P + p) / T);
                }
            }
#pragma GCC unroll 4
            for (size_t p = 0; p < P; ++p) weights[p] = next[p];
        }
    }
#pragma GCC unroll 12
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < P; ++p) {
            for (size_t c = 1; c < chains; ++c) sums[0][t][p] = _mm512_add_epi32(sums[0][t][p], sums[c][t][p]);
            _mm512_storeu_si512(out + t * kRows + 16 * p, sums[0][t][p]);
        }
}

// Many tokens fill the registers with sums of half the rows.
template <size_t T>
void five_bits_halves(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                      int32_t* out) {
    five_bits_tile<2, T>(group, blocks, x, stride, start, out);
    five_bits_tile<2, T>(group + 80, blocks, x, stride, start, out + 32);
}

void five_bits(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
               int32_t* out) {
    switch (tokens) {
        case 1: return five_bits_tile<4, 1>(group, blocks, x, stride, start, out);
        case 2: return five_bits_tile<4, 2>(group, blocks, x, stride, start, out);
        case 3: return five_bits_tile<4, 3>(group, blocks, x, stride, start, out);
        case 4: return five_bits_tile<4, 4>(group, blocks, x, stride, start, out);
        case 5: return five_bits_halves<5>(group, blocks, x, stride, start, out);
        case 6: return five_bits_halves<6>(group, blocks, x, stride, start, out);
        case 7: return five_bits_halves<7>(group, blocks, x, stride, start, out);
        case 8: return five_bits_halves<8>(group, blocks, x, stride, start, out);
        case 9: return five_bits_halves<9>(group, blocks, x, stride, start, out);
        case 10: return five_bits_halves<10>(group, blocks, x, stride, start, out);
        case 11: return five_bits_halves<11>(group, blocks, x, stride, start, out);
        case 12: return five_bits_halves<12>(group, blocks, x, stride, start, out);
    }
}

// Three blocks of two bits from four of five, of which there are `blocks`: fours of columns that stood three to a
// number stand four to a byte.
void expand_blocks(const uint8_t* group, size_t blocks, size_t wide, uint8_t* out) {
    const __m512i digits[3] = {load(kTables.digits[0]), load(kTables.digits[1]), load(kTables.digits[2])};
    for (size_t p = 0; p < 4; ++p) {
        __m512i numbers[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 160 * i + 40 * p, _MM_HINT_T0);
            numbers[i] = i < blocks ? numbers_of(group + 160 * i + 40 * p) : _mm512_setzero_si512();
        }
#pragma GCC unroll 3
        for (size_t k = 0; k < 3; ++k) {
            __m512i bytes = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (size_t f = 0; f < 4; ++f) {
                const size_t four = 4 * k + f;
                const __m512i fields = _mm512_permutexvar_epi8(numbers[four / 3], digits[four % 3]);
                bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(fields, unsigned(2 * f)));
            }
            if (k < wide) _mm512_storeu_si512(out + 256 * k + 64 * p, bytes);
        }
    }
}

void expand(const uint8_t* group, size_t blocks, size_t wide, uint8_t* out) {
    for (; blocks >= 4 && wide >= 3; blocks -= 4, wide -= 3, group += 4 * 160, out += 3 * 256)
        expand_blocks(group, 4, 3, out);
    if (wide) expand_blocks(group, blocks, wide, out);
}
