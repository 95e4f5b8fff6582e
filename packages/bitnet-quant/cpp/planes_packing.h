// Numbers into planes, the same for every instruction set: loops that a compiler makes vectors of. A file includes it
// in its own anonymous namespace.

void place_block(const uint8_t* __restrict numbers, size_t next, uint8_t* __restrict nibbles,
                 uint8_t* __restrict bits) {
    constexpr size_t half = kPlaneColumns / 2, run = kPlaneColumns / 8;
    for (size_t i = 0; i < half; ++i) nibbles[i] = uint8_t(numbers[i] >> 4 | (numbers[half + i] & 0xf0));
    for (size_t plane = 0; plane < kPlanes; ++plane, bits += next) {
        uint8_t bytes[run] = {};
        for (size_t b = 0; b < 8; ++b)
            for (size_t i = 0; i < run; ++i)
                bytes[i] = uint8_t(bytes[i] | (numbers[run * b + i] >> (kPlanes - 1 - plane) & 1)
                                                  << ((b + plane) % 4 + b / 4 * 4));
        __builtin_memcpy(bits, bytes, run);
    }
}

int32_t squares_below(const uint8_t* __restrict numbers, int16_t most) {
    int32_t sum = 0;
    for (size_t i = 0; i < kPlaneColumns; ++i) {
        const auto twice = int16_t(2 * (numbers[i] & most) - most);
        sum += twice * twice;
    }
    return sum;
}

void place_planes(const uint8_t* numbers, size_t blocks, size_t next, uint8_t* nibbles, uint8_t* bits,
                  int64_t* squares) {
    for (size_t i = 0; i < kPlanes; ++i) squares[i] = 0;
    for (size_t block = 0; block < blocks; ++block, numbers += kPlaneColumns) {
        place_block(numbers, next, nibbles + kPlaneColumns / 2 * block, bits + kPlaneColumns / 8 * block);
        for (size_t i = 0; i < kPlanes; ++i) squares[i] += squares_below(numbers, int16_t(15 >> i));
    }
}
