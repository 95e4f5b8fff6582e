// Digits from the byte orders of files into the order of the kernels, to the bit, against the plain table.
#include "../isa.h"
#include "check.h"

namespace bitnet::check {
namespace {

constexpr const char* kWires[] = {"i2_s_128", "i2_s_64", "hf_rows", "tq1_0", "tq2_0", "q2_0_64", "q2_0_128"};

void unpack_case(const Kernels& kernels, Report& report, Wire wire, size_t count, size_t field) {
    AT("%s unpack %s, %zu groups", kernels.name, kWires[size_t(wire)], count);
    const size_t digits = digits_of(wire);
    const size_t bytes = wire == Wire::hf_rows ? 1 : wire == Wire::tq1_0 ? 52 : digits / 4;
    Chance chance(count * 8 + size_t(wire));
    std::vector<uint8_t> stored(count * bytes), expected(count * digits);
    for (uint8_t& byte : stored) byte = uint8_t(chance.between(0, 255));
    kScalar.unpack(wire, stored.data(), ptrdiff_t(bytes), count, field, expected.data());
    static Guarded from{1 << 17}, out{1 << 17};
    for (Edge edge : {Edge::end, Edge::start}) {
        uint8_t* found = out.filled(edge, expected.size(), uint8_t(0xa5));
        kernels.unpack(wire, from.copy(edge, stored), ptrdiff_t(bytes), count, field, found);
        report.expect(same(found, expected.data(), expected.size()), "unpack");
    }
}

// A whole group, quarter by quarter; in another order, expanded.
void place_case(const Kernels& kernels, Report& report, size_t blocks, bool sound) {
    AT("%s place, %zu blocks", kernels.name, blocks);
    const size_t columns = blocks * 48;  // whole blocks of both orders
    Chance chance(blocks);
    std::vector<uint8_t> digits(kRows * columns);
    for (uint8_t& digit : digits) digit = uint8_t(chance.between(0, 2));
    if (!sound) digits[size_t(chance.between(0, int32_t(digits.size()) - 1))] = 3;
    digits.resize(digits.size() + 4);
    const auto placed = [&](const Kernels& table) {
        const size_t bytes = bytes_of(table.order);
        std::vector<uint8_t> group(columns / columns_of(table.order) * bytes);
        uint32_t wrong = 0;
        for (size_t part = 0; part < 4; ++part)
            wrong |=
                table.place(digits.data() + 16 * part * columns, columns, columns, group.data() + part * bytes / 4);
        report.expect((wrong == 0) == sound, "digits that are no code");
        return group;
    };
    std::vector<uint8_t> found = placed(kernels), expected = placed(kScalar);
    if (kernels.expand) {
        std::vector<uint8_t> wide(expected.size());
        kernels.expand(found.data(), columns / 12, columns / 16, wide.data());
        found = wide;
    }
    if (sound) report.expect(found == expected, "place");
}

}  // namespace

void check_packing(const Kernels& kernels, Report& report) {
    for (size_t wire = 0; wire < std::size(kWires); ++wire)
        for (size_t count : {1, 2, 7, 33, 100})
            for (size_t field = 0; field < (Wire(wire) == Wire::hf_rows ? 4 : 1); ++field)
                unpack_case(kernels, report, Wire(wire), count, field);
    for (size_t blocks = 1; blocks <= 20; ++blocks)
        for (bool sound : {true, false}) place_case(kernels, report, blocks, sound);
}

}  // namespace bitnet::check
