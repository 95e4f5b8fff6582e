// Sums over int8 rows in planes, to the bit: all rows or some, in part or whole, against sums in 64 bits.
#include <algorithm>

#include "check.h"

namespace bitnet::check {
namespace {

struct Buffers {
    Guarded nibbles{1 << 18}, bits{1 << 18}, x{1 << 16}, start{4096}, out{8192}, rows{4096}, bytes{1 << 19};
};

// 64 rows as kernels.h has them. A plane of bits begins `next` bytes behind the one before.
struct Matrix {
    size_t columns, blocks, next;
    std::vector<int8_t> weights;
    std::vector<uint8_t> nibbles, bits;

    Matrix(size_t columns, size_t gap, const std::vector<int8_t>& weights)
        : columns(columns),
          blocks((columns + kPlaneColumns - 1) / kPlaneColumns),
          next(kRows * blocks * 16 + gap),
          weights(weights),
          nibbles(kRows * blocks * 64),
          bits(3 * next + kRows * blocks * 16) {
        for (size_t row = 0; row < kRows; ++row)
            for (size_t column = 0; column < blocks * kPlaneColumns; ++column) {
                const unsigned number = unsigned(at(row, column) + 128);
                const size_t block = row * blocks + column / 128, in = column % 128, b = in / 16;
                uint8_t& nibble = nibbles[64 * block + in % 64];
                nibble = uint8_t(nibble | number >> 4 << (in < 64 ? 0 : 4));
                for (size_t plane = 0; plane < kPlanes; ++plane) {
                    uint8_t& byte = bits[plane * next + 16 * block + in % 16];
                    byte = uint8_t(byte | (number >> (3 - plane) & 1) << ((b + plane) % 4 + b / 4 * 4));
                }
            }
    }

    int at(size_t row, size_t column) const { return column < columns ? weights[row * columns + column] : 0; }

    // The sum of the first `kept` bits of a row's numbers times an input.
    int32_t sum(size_t row, size_t kept, const int8_t* x) const {
        int64_t sum = 0;
        for (size_t column = 0; column < blocks * kPlaneColumns; ++column)
            sum += int64_t((at(row, column) + 128) >> (8 - kept)) * x[column];
        return int32_t(sum);
    }
};

struct Case {
    const Kernels& kernels;
    Buffers& buffers;
    Report& report;
    const Matrix& matrix;
    const std::vector<int8_t>& x;  // (tokens, stride)
    size_t stride, tokens;
    Edge edge;

    const int8_t* input(size_t token) const { return x.data() + token * stride; }

    void compare(const int32_t* found, size_t count, size_t kept, const std::vector<int32_t>& start, const char* what) {
        bool all = true;
        for (size_t token = 0; token < count; ++token)
            for (size_t row = 0; row < kRows; ++row)
                all = all && found[token * kRows + row] == matrix.sum(row, kept, input(token)) + start[token] * 128;
        report.expect(all, what);
    }

    void coarse(bool deep) {
        int32_t* out = buffers.out.filled(edge, tokens * kRows, int32_t(0x5a5a5a5a));
        const std::vector<uint8_t> first(matrix.bits.begin(),
                                         matrix.bits.begin() + ptrdiff_t(kRows * matrix.blocks * 16));
        kernels.planes->coarse(buffers.nibbles.copy(edge, matrix.nibbles),
                               deep ? buffers.bits.copy(edge, first) : nullptr, matrix.blocks, buffers.x.copy(edge, x),
                               stride, tokens, out);
        compare(out, tokens, deep ? 5 : 4, std::vector<int32_t>(tokens), "coarse sums");
    }

    // Plane after plane for some rows.
    void bits(const std::vector<uint8_t>& some) {
        const uint8_t* bits = buffers.bits.copy(edge, matrix.bits);
        const int8_t* inputs = buffers.x.copy(edge, x);
        std::vector<int32_t> sums;
        for (uint8_t row : some)
            for (size_t token = 0; token < 2; ++token) sums.push_back(matrix.sum(row, 4, input(token)));
        for (size_t plane = 0; plane < kPlanes; ++plane) {
            std::vector<const uint8_t*> rows;
            for (uint8_t row : some) rows.push_back(bits + plane * matrix.next + row * matrix.blocks * 16);
            int32_t* out = buffers.out.filled(edge, sums.size(), int32_t(0x5a5a5a5a));
            kernels.planes->bits(buffers.rows.copy(edge, rows), rows.size(), plane, matrix.blocks, inputs, stride, out);
            for (size_t i = 0; i < sums.size(); ++i) sums[i] = 2 * sums[i] + out[i];
        }
        bool all = true;
        for (size_t i = 0; i < sums.size(); ++i) all = all && sums[i] == matrix.sum(some[i / 2], 8, input(i % 2));
        report.expect(all, "sums of planes");
    }

    void whole(const std::vector<int32_t>& start) {
        const uint8_t *nibbles = buffers.nibbles.copy(edge, matrix.nibbles),
                      *planes = buffers.bits.copy(edge, matrix.bits);
        const int8_t* inputs = buffers.x.copy(edge, x);
        uint8_t* scratch = buffers.bytes.filled(edge, kWholeRows * matrix.blocks * kPlaneColumns, uint8_t(0xa5));
        int32_t* out = buffers.out.filled(edge, tokens * kRows, int32_t(0x5a5a5a5a));
        kernels.planes->whole(nibbles, planes, matrix.next, matrix.blocks, inputs, stride, tokens,
                              buffers.start.copy(edge, start), out, scratch);
        compare(out, tokens, 8, start, "sums of all planes");
    }

    void place() {
        const size_t width = matrix.blocks * kPlaneColumns;
        std::vector<uint8_t> numbers(width);
        bool all = true;
        for (size_t row = 0; row < kRows; ++row) {
            for (size_t column = 0; column < width; ++column) numbers[column] = uint8_t(matrix.at(row, column) + 128);
            uint8_t* nibbles = buffers.nibbles.filled(edge, width / 2, uint8_t(0xa5));
            uint8_t* bits = buffers.bits.filled(edge, 3 * matrix.next + width / 8, uint8_t(0xa5));
            int64_t squares[kPlanes];
            kernels.planes->place(buffers.bytes.copy(edge, numbers), matrix.blocks, matrix.next, nibbles, bits,
                                  squares);
            all = all && same(nibbles, &matrix.nibbles[row * width / 2], width / 2);
            for (size_t plane = 0; plane < kPlanes; ++plane) {
                all = all &&
                      same(bits + plane * matrix.next, &matrix.bits[plane * matrix.next + row * width / 8], width / 8);
                int64_t expected = 0;
                for (uint8_t number : numbers) {
                    const int most = 15 >> plane, twice = 2 * (number & most) - most;
                    expected += twice * twice;
                }
                all = all && squares[plane] == expected;
            }
        }
        report.expect(all, "rows in planes");
    }
};

void matrix_case(const Kernels& kernels, Buffers& buffers, Report& report, const Matrix& matrix,
                 const std::vector<int8_t>& x, size_t tokens, Chance& chance) {
    AT("%s planes, %zu columns, %zu tokens", kernels.name, matrix.columns, tokens);
    std::vector<int32_t> start(tokens);
    for (int32_t& value : start) value = chance.between(-1000000, 1000000);
    std::vector<uint8_t> some;
    for (size_t row = 0; row < kRows; ++row)
        if (chance.between(0, 3) == 0) some.push_back(uint8_t(row));
    for (Edge edge : {Edge::end, Edge::start}) {
        Case one{kernels, buffers, report, matrix, x, matrix.blocks * kPlaneColumns, tokens, edge};
        if (tokens <= kTokens) {
            one.coarse(false);
            one.coarse(true);
        }
        one.bits(some);
        one.whole(start);
        if (tokens == 2) one.place();
    }
}

}  // namespace

void check_planes(const Kernels& kernels, Report& report) {
    if (!kernels.planes) return;
    Buffers buffers;
    Chance chance(5);
    for (size_t columns : {1, 16, 100, 127, 128, 129, 300, 1000, 2560})
        for (size_t tokens : {2, 4, 6, 8, 14, 20}) {
            const size_t width = (columns + kPlaneColumns - 1) / kPlaneColumns * kPlaneColumns;
            std::vector<int8_t> weights(kRows * columns), x(tokens * width);
            for (int8_t& value : weights) value = int8_t(chance.between(-127, 127));
            for (size_t i = 0; i < x.size(); ++i) x[i] = int8_t(i % width < columns ? chance.between(-128, 127) : 0);
            matrix_case(kernels, buffers, report, {columns, columns % 3, weights}, x, tokens, chance);
            if (tokens != 2 && tokens != 6) continue;
            for (int8_t weight : {-127, 127})  // all of one sign
                for (int8_t input : {-128, 127}) {
                    std::fill(weights.begin(), weights.end(), weight);
                    for (size_t i = 0; i < x.size(); ++i) x[i] = int8_t(i % width < columns ? input : 0);
                    matrix_case(kernels, buffers, report, {columns, 0, weights}, x, tokens, chance);
                }
        }
}

}  // namespace bitnet::check
