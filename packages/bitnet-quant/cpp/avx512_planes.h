// Int8 rows in planes for avx512.cpp, which includes this where its own functions are known. A row lies in one piece,
// so a sum is that of 16 lanes. Four rows at once share what is read of x; each four are a call, whose sums GCC would
// else keep in memory.
void fetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

// Two digits of a block, columns 0 to 63 and 64 to 127, from the low and the high halves of bytes.
__m512i nibbles_of(__m512i bytes, size_t half) {
    return _mm512_and_si512(half ? _mm512_srli_epi16(bytes, 4) : bytes, _mm512_set1_epi8(15));
}

// The 16 bytes of a plane in each lane; for 64 columns lane i wants bit (i + plane) % 4 of either half of a byte.
__m512i four_times(const uint8_t* bits) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits)));
}

__m512i wanted_bits(size_t plane, size_t half) {
    const auto bit = [&](size_t lane) { return int64_t(0x0101010101010101) << ((lane + plane) % 4 + 4 * half); };
    return _mm512_set_epi64(bit(3), bit(3), bit(2), bit(2), bit(1), bit(1), bit(0), bit(0));
}

// What a nibble of such bits says where it holds all four planes.
struct Meaning {
    uint8_t values[64];
};

constexpr Meaning make_meaning() {
    Meaning meaning{};
    for (size_t i = 0; i < 64; ++i)
        for (size_t plane = 0; plane < kPlanes; ++plane)
            meaning.values[i] = uint8_t(meaning.values[i] | (i >> (i / 16 + plane) % 4 & 1) << (kPlanes - 1 - plane));
    return meaning;
}

alignas(64) constexpr Meaning kMeaning = make_meaning();

__m512i chosen(__m512i mask, __m512i a, __m512i b) {  // the bits of a where the mask has them, else those of b
    return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

// All planes of 128 columns as bytes, the first and the last 64.
struct Joined {
    __m512i halves[2];
};

Joined join_block(const uint8_t* nibbles, const uint8_t* bits, size_t next) {
    const auto wanted = [](size_t plane) { return _mm512_or_si512(wanted_bits(plane, 0), wanted_bits(plane, 1)); };
    const __m512i first = chosen(wanted(0), four_times(bits), four_times(bits + next));
    const __m512i last = chosen(wanted(2), four_times(bits + 2 * next), four_times(bits + 3 * next));
    const __m512i there = chosen(_mm512_or_si512(wanted(0), wanted(1)), first, last);
    const __m512i above = load(nibbles), meaning = load(kMeaning.values), fifteen = _mm512_set1_epi8(15);
    return {{chosen(fifteen, _mm512_shuffle_epi8(meaning, nibbles_of(there, 0)), _mm512_slli_epi16(above, 4)),
             chosen(fifteen, _mm512_shuffle_epi8(meaning, nibbles_of(there, 1)), above)}};
}

// The sums of four vectors, stored side by side.
void store_sums(int32_t* out, __m512i a, __m512i b, __m512i c, __m512i d, int32_t start) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_add_epi32(four, _mm_set1_epi32(start)));
}

// Nibbles alone, or with the first plane of bits below them.
template <size_t T, bool deep>
[[gnu::noinline]] void coarse_rows(const uint8_t* nibbles, const uint8_t* bits, size_t blocks, const int8_t* x,
                                   size_t stride, int32_t* out) {
    constexpr size_t chains = T <= 2 ? 2 : 1;  // few sums would wait for themselves
    const size_t row_bytes = blocks * kPlaneColumns / 2;
    __m512i sums[chains][T][4];
#pragma GCC unroll 2
    for (size_t c = 0; c < chains; ++c)
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) sums[c][t][r] = _mm512_setzero_si512();
    for (size_t block = 0; block < blocks; ++block) {
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; ++half) {
            __m512i weights[4];
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) {
                const uint8_t *above = nibbles + r * row_bytes + 64 * block,
                              *below = bits + r * row_bytes / 4 + 16 * block;
                if (half == 0) fetch(above + kAhead);
                weights[r] = nibbles_of(load(above), half);
                if (deep) {
                    if (half == 0) fetch(below + kAhead / 4);
                    const __mmask64 there = _mm512_test_epi8_mask(four_times(below), wanted_bits(0, half));
                    weights[r] = _mm512_add_epi8(weights[r], weights[r]);
                    weights[r] = _mm512_mask_add_epi8(weights[r], there, weights[r], _mm512_set1_epi8(1));
                }
            }
#pragma GCC unroll 6
            for (size_t t = 0; t < T; ++t) {
                const __m512i inputs = load(x + t * stride + kPlaneColumns * block + 64 * half);
#pragma GCC unroll 4
                for (size_t r = 0; r < 4; ++r) {
                    __m512i& sum = sums[half % chains][t][r];
                    sum = _mm512_dpbusd_epi32(sum, weights[r], inputs);
                }
            }
        }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
        if (chains == 2)
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) sums[0][t][r] = _mm512_add_epi32(sums[0][t][r], sums[chains - 1][t][r]);
        store_sums(out + t * kRows, sums[0][t][0], sums[0][t][1], sums[0][t][2], sums[0][t][3], 0);
    }
}

template <size_t T>
void coarse_tile(const uint8_t* nibbles, const uint8_t* bits, size_t blocks, const int8_t* x, size_t stride,
                 int32_t* out) {
    const size_t bytes = blocks * kPlaneColumns / 8;  // of a row of bits
    for (size_t row = 0; row < kRows; row += 4)
        if (bits)
            coarse_rows<T, true>(nibbles + 4 * row * bytes, bits + row * bytes, blocks, x, stride, out + row);
        else
            coarse_rows<T, false>(nibbles + 4 * row * bytes, nullptr, blocks, x, stride, out + row);
}

void coarse(const uint8_t* nibbles, const uint8_t* bits, size_t blocks, const int8_t* x, size_t stride, size_t tokens,
            int32_t* out) {
    switch (tokens) {
        case 2: return coarse_tile<2>(nibbles, bits, blocks, x, stride, out);
        case 4: return coarse_tile<4>(nibbles, bits, blocks, x, stride, out);
        case 6: return coarse_tile<6>(nibbles, bits, blocks, x, stride, out);
    }
}

// Four rows, while the four at `ahead` are fetched: they lie apart, and nobody else would know of them.
[[gnu::noinline]] void bits_rows(const uint8_t* const* rows, const uint8_t* const* ahead, size_t plane, size_t blocks,
                                 const int8_t* x, size_t stride, int32_t* out) {
    const __m512i one = _mm512_set1_epi8(1), wanted[2] = {wanted_bits(plane, 0), wanted_bits(plane, 1)};
    const uint8_t* const from[4] = {rows[0], rows[1], rows[2], rows[3]};
    __m512i sums[2][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) sums[0][r] = sums[1][r] = _mm512_setzero_si512();
    for (size_t block = 0; block < blocks; ++block) {
        fetch(ahead[block % 4] + 16 * (block / 4 * 4));
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; ++half) {
            const int8_t* inputs = x + kPlaneColumns * block + 64 * half;
            const __m512i high = load(inputs), low = load(inputs + stride);
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) {
                const __m512i there = _mm512_and_si512(four_times(from[r] + 16 * block), wanted[half]);
                const __m512i weights = _mm512_min_epu8(there, one);
                sums[0][r] = _mm512_dpbusd_epi32(sums[0][r], weights, high);
                sums[1][r] = _mm512_dpbusd_epi32(sums[1][r], weights, low);
            }
        }
    }
#pragma GCC unroll 2
    for (size_t t = 0; t < 2; ++t) store_sums(out + 4 * t, sums[t][0], sums[t][1], sums[t][2], sums[t][3], 0);
}

void bits(const uint8_t* const* rows, size_t count, size_t plane, size_t blocks, const int8_t* x, size_t stride,
          int32_t* out) {
    constexpr size_t distance = 12;  // rows; a multiple of four
    for (size_t at = 0; at < count; at += 4) {
        const uint8_t* last[4];  // the last four may lack some: one of them instead
        for (size_t r = 0; r < 4; ++r) last[r] = rows[at + r < count ? at + r : at];
        const uint8_t* const* ahead = at + distance + 4 <= count ? rows + at + distance : last;
        int32_t found[8];
        bits_rows(last, ahead, plane, blocks, x, stride, found);
        for (size_t r = 0; r < 4 && at + r < count; ++r)
            for (size_t t = 0; t < 2; ++t) out[2 * (at + r) + t] = found[4 * t + r];
    }
}

// Four rows times the two digits of one token, one row after the other.
[[gnu::noinline]] void join_pair(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks,
                                 const int8_t* x, size_t stride, const int32_t* start, int32_t* sums) {
    __m512i found[2][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
        const uint8_t *above = nibbles + 64 * r * blocks, *below = bits + 16 * r * blocks;
        __m512i parts[2][2];  // of each half, so that no sum waits for itself
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; ++half) parts[half][0] = parts[half][1] = _mm512_setzero_si512();
        for (size_t block = 0; block < blocks; ++block) {
            fetch(above + 64 * block + kAhead);
            fetch(below + 16 * block + block % 4 * next + kAhead / 4);
            const Joined weights = join_block(above + 64 * block, below + 16 * block, next);
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; ++half)
#pragma GCC unroll 2
                for (size_t t = 0; t < 2; ++t)
                    parts[half][t] = _mm512_dpbusd_epi32(parts[half][t], weights.halves[half],
                                                         load(x + t * stride + kPlaneColumns * block + 64 * half));
        }
#pragma GCC unroll 2
        for (size_t t = 0; t < 2; ++t) found[t][r] = _mm512_add_epi32(parts[0][t], parts[1][t]);
    }
#pragma GCC unroll 2
    for (size_t t = 0; t < 2; ++t)
        store_sums(sums + t * kRows, found[t][0], found[t][1], found[t][2], found[t][3], start[t] * 128);
}

// Four rows side by side, times more.
template <size_t T>
[[gnu::noinline]] void join_rows(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks,
                                 const int8_t* x, size_t stride, const int32_t* start, int32_t* sums) {
    __m512i found[T][4];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; ++r) found[t][r] = _mm512_setzero_si512();
    for (size_t block = 0; block < blocks; ++block) {
        Joined weights[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; ++r) {
            const uint8_t *above = nibbles + 64 * (r * blocks + block), *below = bits + 16 * (r * blocks + block);
            fetch(above + kAhead);
            fetch(below + block % 4 * next + kAhead / 4);
            weights[r] = join_block(above, below, next);
        }
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; ++half)
#pragma GCC unroll 6
            for (size_t t = 0; t < T; ++t) {
                const __m512i inputs = load(x + t * stride + kPlaneColumns * block + 64 * half);
#pragma GCC unroll 4
                for (size_t r = 0; r < 4; ++r)
                    found[t][r] = _mm512_dpbusd_epi32(found[t][r], weights[r].halves[half], inputs);
            }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
        store_sums(sums + t * kRows, found[t][0], found[t][1], found[t][2], found[t][3], start[t] * 128);
}

void join_tile(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks, const int8_t* x, size_t stride,
               size_t tokens, const int32_t* start, int32_t* sums) {
    switch (tokens) {
        case 2: return join_pair(nibbles, bits, next, blocks, x, stride, start, sums);
        case 4: return join_rows<4>(nibbles, bits, next, blocks, x, stride, start, sums);
        case 6: return join_rows<6>(nibbles, bits, next, blocks, x, stride, start, sums);
    }
}

// A row as bytes.
void join_row(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks, uint8_t* out) {
    for (size_t block = 0; block < blocks; ++block, nibbles += 64, bits += 16, out += kPlaneColumns) {
        fetch(nibbles + kAhead);
        fetch(bits + block % 4 * next + kAhead / 4);
        const Joined weights = join_block(nibbles, bits, next);
        _mm512_storeu_si512(out, weights.halves[0]);
        _mm512_storeu_si512(out + 64, weights.halves[1]);
    }
}

// Rows that were kept; meanwhile as many bytes as a row has are fetched from each of `count` places.
template <size_t T>
[[gnu::noinline]] void joined_rows(const uint8_t* rows, size_t columns, const int8_t* x, size_t stride,
                                   const int32_t* start, const uint8_t* const* ahead, size_t count, int32_t* out) {
    __m512i sums[T][4];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; ++r) sums[t][r] = _mm512_setzero_si512();
    for (size_t column = 0; column < columns; column += 64) {
        for (size_t i = 0; i < count; ++i)
            _mm_prefetch(reinterpret_cast<const char*>(ahead[i]) + column, _MM_HINT_T1);
        __m512i weights[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; ++r) weights[r] = load(rows + r * columns + column);
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
            const __m512i inputs = load(x + t * stride + column);
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], weights[r], inputs);
        }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
        store_sums(out + t * kRows, sums[t][0], sums[t][1], sums[t][2], sums[t][3], start[t] * 128);
}

void joined_tile(const uint8_t* rows, size_t columns, const int8_t* x, size_t stride, size_t tokens,
                 const int32_t* start, const uint8_t* const* ahead, size_t count, int32_t* sums) {
    switch (tokens) {
        case 2: return joined_rows<2>(rows, columns, x, stride, start, ahead, count, sums);
        case 4: return joined_rows<4>(rows, columns, x, stride, start, ahead, count, sums);
        case 6: return joined_rows<6>(rows, columns, x, stride, start, ahead, count, sums);
    }
}

// Few tokens multiply what is joined at once; for more, eight rows stay in the nearest cache as bytes.
void whole(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks, const int8_t* x, size_t stride,
           size_t tokens, const int32_t* start, int32_t* sums, uint8_t* scratch) {
    constexpr size_t pieces = 4 + kPlanes;
    const uint8_t* ahead[pieces];
    const size_t columns = blocks * kPlaneColumns, tiles = (tokens + kTokens - 1) / kTokens;
    const size_t tile = (tokens / 2 + tiles - 1) / tiles * 2, step = tiles == 1 ? 4 : kWholeRows;
    for (size_t row = 0; row < kRows; row += step, nibbles += step * columns / 2, bits += step * columns / 8) {
        if (tiles == 1) {
            join_tile(nibbles, bits, next, blocks, x, stride, tokens, start, sums + row);
            continue;
        }
        for (size_t r = 0; r < kWholeRows; ++r)
            join_row(nibbles + r * columns / 2, bits + r * columns / 8, next, blocks, scratch + r * columns);
        for (size_t i = 0; i < pieces; ++i)
            ahead[i] = i < 4 ? nibbles + (4 + i) * columns : bits + columns + (i - 4) * next;
        size_t fetched = 0, calls = 2 * tiles;
        for (size_t token = 0; token < tokens; token += tile)
            for (size_t r = 0; r < kWholeRows; r += 4, --calls) {
                const size_t part = (pieces - fetched + calls - 1) / calls;
                joined_tile(scratch + r * columns, columns, x + token * stride, stride,
                            token + tile < tokens ? tile : tokens - token, start + token, ahead + fetched, part,
                            sums + token * kRows + row + r);
                fetched += part;
            }
    }
}

#include "planes_packing.h"

constexpr PlaneKernels kPlaneKernels = {coarse, bits, whole, place_planes};
