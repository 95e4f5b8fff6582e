// Sums of ternary and int8 weights times int8, to the bit, against sums in 64 bits that share nothing with a kernel.
#include <algorithm>

#include "check.h"

namespace bitnet::check {
namespace {

// One group of 64 rows: digits of `columns`, those of missing rows 1.
struct Digits {
    size_t columns;
    std::vector<uint8_t> values;

    unsigned at(size_t row, size_t column) const { return column < columns ? values[row * columns + column] : 1; }
};

size_t blocks_of(size_t columns, Order order) { return (columns + columns_of(order) - 1) / columns_of(order); }

// As kernels.h has it.
std::vector<uint8_t> packed(const Digits& digits, Order order, size_t blocks) {
    std::vector<uint8_t> bytes(blocks * bytes_of(order));
    for (size_t block = 0; block < blocks; ++block)
        for (size_t row = 0; row < kRows; ++row)
            for (size_t j = 0; j < 4; ++j) {
                unsigned number = 0;
                const size_t fields = columns_of(order) / 4;
                for (size_t f = fields; f-- > 0;)
                    number = number * (order == Order::two_bits ? 4 : 3) +
                             digits.at(row, block * columns_of(order) + 4 * f + j);
                uint8_t* from = bytes.data() + block * bytes_of(order);
                if (order == Order::two_bits) {
                    from[4 * row + j] = uint8_t(number);
                    continue;
                }
                from += row / 16 * 40;
                const size_t bit = 5 * (4 * (row % 16) + j);
                from[bit / 8] = uint8_t(from[bit / 8] | number << bit % 8);
                if (bit % 8 > 3) from[bit / 8 + 1] = uint8_t(from[bit / 8 + 1] | number >> (8 - bit % 8));
            }
    return bytes;
}

std::vector<int8_t> padded(const std::vector<int8_t>& x, size_t tokens, size_t columns, size_t width) {
    std::vector<int8_t> wide(tokens * width);
    for (size_t token = 0; token < tokens; ++token)
        std::copy_n(x.begin() + ptrdiff_t(token * columns), columns, wide.begin() + ptrdiff_t(token * width));
    return wide;
}

template <typename Weight>
std::vector<int32_t> exact(size_t tokens, size_t columns, const std::vector<int8_t>& x,
                           const std::vector<int32_t>& start, Weight weight) {
    std::vector<int32_t> sums;
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < kRows; ++row) {
            int64_t sum = start[token];
            for (size_t column = 0; column < columns; ++column)
                sum += int64_t(weight(row, column)) * x[token * columns + column];
            sums.push_back(int32_t(sum));
        }
    return sums;
}

// Buffers for one call after the other.
struct Buffers {
    Guarded group{2 << 20}, x{1 << 17}, start{4096}, out{8192}, wide{1 << 20};
};

using Multiply = void (*)(const uint8_t*, size_t, const int8_t*, size_t, size_t, const int32_t*, int32_t*);

// All tokens, at most `few` at once, at both edges.
void compare(Buffers& buffers, Report& report, const char* what, Multiply kernel, size_t few,
             const std::vector<uint8_t>& group, size_t blocks, const std::vector<int8_t>& x, size_t stride,
             const std::vector<int32_t>& start, const std::vector<int32_t>& expected) {
    for (Edge edge : {Edge::end, Edge::start}) {
        const uint8_t* weights = buffers.group.copy(edge, group);
        const int8_t* inputs = buffers.x.copy(edge, x);
        const int32_t* starts = buffers.start.copy(edge, start);
        int32_t* out = buffers.out.filled(edge, expected.size(), int32_t(0x5a5a5a5a));
        size_t token = 0;
        do {
            const size_t count = std::min(few, start.size() - token);
            kernel(weights, blocks, inputs + token * stride, stride, count, starts + token, out + token * kRows);
            token += count;
        } while (token < start.size());
        report.expect(same(out, expected.data(), expected.size()), what);
    }
}

void expand_case(const Kernels& kernels, Buffers& buffers, Report& report, const Digits& digits,
                 const std::vector<uint8_t>& group, const std::vector<int8_t>& x, const std::vector<int32_t>& start,
                 const std::vector<int32_t>& expected) {
    const size_t blocks = blocks_of(digits.columns, kernels.order), wide = blocks_of(digits.columns, Order::two_bits);
    // Columns that the blocks hold have a digit, even where the matrix has none; those beyond have 0.
    std::vector<uint8_t> known;
    const size_t width = wide * 16;
    for (size_t row = 0; row < kRows; ++row)
        for (size_t column = 0; column < width; ++column)
            known.push_back(uint8_t(column < blocks * columns_of(kernels.order) ? digits.at(row, column) : 0));
    const std::vector<uint8_t> two_bits = packed({width, known}, Order::two_bits, wide);
    for (Edge edge : {Edge::end, Edge::start}) {
        uint8_t* out = buffers.wide.filled(edge, two_bits.size(), uint8_t(0xa5));
        kernels.expand(buffers.group.copy(edge, group), blocks, wide, out);
        report.expect(same(out, two_bits.data(), two_bits.size()), "expand");
    }
    compare(buffers, report, "expanded", kernels.expanded, kTokens, two_bits, wide,
            padded(x, start.size(), digits.columns, width), width, start, expected);
}

void ternary_case(const Kernels& kernels, Buffers& buffers, Report& report, const Digits& digits,
                  const std::vector<int8_t>& x, const std::vector<int32_t>& start) {
    AT("%s ternary, %zu columns, %zu tokens", kernels.name, digits.columns, start.size());
    const size_t blocks = blocks_of(digits.columns, kernels.order), stride = blocks * columns_of(kernels.order);
    const auto weight = [&](size_t row, size_t column) { return digits.at(row, column); };
    const std::vector<int32_t> expected = exact(start.size(), digits.columns, x, start, weight);
    const std::vector<uint8_t> group = packed(digits, kernels.order, blocks);
    compare(buffers, report, "sums of digits", kernels.ternary, kernels.few, group, blocks,
            padded(x, start.size(), digits.columns, stride), stride, start, expected);
    if (kernels.expand) expand_case(kernels, buffers, report, digits, group, x, start, expected);
}

void bytes_case(const Kernels& kernels, Buffers& buffers, Report& report, const std::vector<int8_t>& weights,
                size_t columns, const std::vector<int8_t>& x, size_t tokens) {
    AT("%s bytes, %zu columns, %zu tokens", kernels.name, columns, tokens);
    const size_t blocks = (columns + kColumns - 1) / kColumns, stride = blocks * kColumns;
    const auto weight = [&](size_t row, size_t column) { return weights[row * columns + column]; };
    const std::vector<int32_t> none(tokens);
    std::vector<int32_t> start;  // minus the sums, as the table's contract has it
    for (size_t token = 0; token < tokens; ++token) {
        int32_t sum = 0;
        for (size_t column = 0; column < columns; ++column) sum -= x[token * columns + column];
        start.push_back(sum);
    }
    std::vector<uint8_t> group(blocks * kColumns * kRows);
    for (size_t row = 0; row < kRows; ++row)
        for (size_t column = 0; column < columns; ++column)
            group[column / 4 * 256 + 4 * row + column % 4] = uint8_t(weight(row, column));
    compare(buffers, report, "sums of bytes", kernels.bytes, kTokens, group, blocks, padded(x, tokens, columns, stride),
            stride, start, exact(tokens, columns, x, none, weight));
}

// A matrix of `rows` by `columns`, group by group, times `tokens`.
void shape_case(const Kernels& kernels, Buffers& buffers, Report& report, size_t rows, size_t columns, size_t tokens) {
    Chance chance(rows * 1000003 + columns * 131 + tokens);
    std::vector<int8_t> x(tokens * columns);
    for (int8_t& value : x) value = int8_t(chance.between(-128, 127));
    std::vector<int32_t> start(tokens);
    for (int32_t& value : start) value = chance.between(-1000000, 1000000);
    for (size_t first = 0; first < rows; first += kRows) {
        Digits digits{columns, std::vector<uint8_t>(kRows * columns, 1)};
        std::vector<int8_t> weights(kRows * columns);
        const size_t held = std::min(kRows, rows - first) * columns;
        for (size_t i = 0; i < held; ++i) {
            digits.values[i] = uint8_t(chance.between(0, 2));
            weights[i] = int8_t(chance.between(-127, 127));
        }
        ternary_case(kernels, buffers, report, digits, x, start);
        bytes_case(kernels, buffers, report, weights, columns, x, tokens);
    }
}

}  // namespace

void check_integers(const Kernels& kernels, Report& report) {
    Buffers buffers;
    for (size_t rows = 1; rows <= 70; ++rows) shape_case(kernels, buffers, report, rows, 1 + rows * 7 % 90, rows % 14);
    for (size_t columns = 1; columns <= 300; columns += 2)
        shape_case(kernels, buffers, report, 1 + columns % 70, columns, columns / 2 % 14);
    for (size_t tokens = 0; tokens <= 13; ++tokens)
        for (size_t columns : {1, 12, 16, 48, 100}) shape_case(kernels, buffers, report, 64, columns, tokens);
    for (size_t columns : {2560, 5460, 6912, 8640})
        for (int8_t input : {-128, -127, 127})
            for (size_t tokens = 1; tokens <= kTokens; ++tokens) {
                const std::vector<int8_t> x(tokens * columns, input);
                const uint8_t digit = uint8_t(tokens % 2 ? 2 : 0);  // all of one sign
                ternary_case(kernels, buffers, report, {columns, std::vector<uint8_t>(kRows * columns, digit)}, x,
                             std::vector<int32_t>(tokens, -int32_t(columns) * input));
                const int8_t weight = tokens % 2 ? 127 : -127;
                bytes_case(kernels, buffers, report, std::vector<int8_t>(kRows * columns, weight), columns, x, tokens);
            }
}

}  // namespace bitnet::check
