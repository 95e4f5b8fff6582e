// Digits from the byte orders of files, the same for every instruction set: loops that a compiler makes vectors of. A
// file includes it in its own anonymous namespace.

// Four runs share the bytes of a group; the k-th stands at bits S.
template <size_t Run, int... S>
void unpack_strided(const uint8_t* __restrict from, uint8_t* __restrict out) {
    size_t at = 0;
    const auto one = [&](int shift) {
        for (size_t i = 0; i < Run; ++i) out[at + i] = uint8_t(from[i] >> shift & 3);
        at += Run;
    };
    (one(S), ...);
}

// Four digits a byte, each of which comes to stand in a byte of its own.
template <size_t Bytes>
void unpack_adjacent(const uint8_t* __restrict from, uint8_t* __restrict out) {
    for (size_t i = 0; i < Bytes; ++i) {
        const uint32_t byte = from[i], four = (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303;
        __builtin_memcpy(out + 4 * i, &four, sizeof four);
    }
}

// N base-3 digits a byte: a digit is what three times the rest overflows, which from 86 and from 171 on it does.
template <size_t Run, size_t N>
void unpack_powers(const uint8_t* __restrict from, uint8_t* __restrict out) {
    uint8_t rest[Run];
    for (size_t i = 0; i < Run; ++i) rest[i] = from[i];
    for (size_t k = 0; k < N; ++k)
        for (size_t i = 0; i < Run; ++i) {
            out[k * Run + i] = uint8_t((rest[i] >= 86) + (rest[i] >= 171));
            rest[i] = uint8_t(rest[i] + rest[i] + rest[i]);
        }
}

void unpack_tq1(const uint8_t* from, uint8_t* out) {
    unpack_powers<32, 5>(from, out);
    unpack_powers<16, 5>(from + 32, out + 160);
    unpack_powers<4, 4>(from + 48, out + 240);
}

void unpack_tq2(const uint8_t* from, uint8_t* out) {
    unpack_strided<32, 0, 2, 4, 6>(from, out);
    unpack_strided<32, 0, 2, 4, 6>(from + 32, out + 128);
}

template <void Group(const uint8_t*, uint8_t*), Wire W>
void unpack_groups(const uint8_t* from, ptrdiff_t stride, size_t count, uint8_t* out) {
    for (size_t i = 0; i < count; ++i, from += stride, out += digits_of(W)) Group(from, out);
}

void unpack_rows(const uint8_t* __restrict from, size_t count, size_t field, uint8_t* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = uint8_t(from[i] >> 2 * field & 3);
}

void unpack_digits(Wire wire, const uint8_t* from, ptrdiff_t stride, size_t count, size_t field, uint8_t* out) {
    switch (wire) {
        case Wire::hf_rows: return unpack_rows(from, count, field, out);
        case Wire::tq1_0: return unpack_groups<unpack_tq1, Wire::tq1_0>(from, stride, count, out);
        case Wire::tq2_0: return unpack_groups<unpack_tq2, Wire::tq2_0>(from, stride, count, out);
        case Wire::i2_s_128:
            return unpack_groups<unpack_strided<32, 6, 4, 2, 0>, Wire::i2_s_128>(from, stride, count, out);
        case Wire::i2_s_64:
            return unpack_groups<unpack_strided<16, 6, 4, 2, 0>, Wire::i2_s_64>(from, stride, count, out);
        case Wire::q2_0_64: return unpack_groups<unpack_adjacent<16>, Wire::q2_0_64>(from, stride, count, out);
        case Wire::q2_0_128: return unpack_groups<unpack_adjacent<32>, Wire::q2_0_128>(from, stride, count, out);
    }
}
