// Element by element against the plain kernels: what becomes an integer or a stored float to the bit, the rest within
// the bound that stands there; at both edges of a buffer the same bits.
#include <cmath>
#include <limits>

#include "check.h"

namespace bitnet::check {
namespace {

enum class Kind { ordinary, halves, zeros, not_finite };

// Numbers of all sizes; halves of integers, which test the rounding; and what no number is.
std::vector<float> numbers(Chance& chance, Kind kind, size_t count) {
    std::vector<float> x(count);
    if (kind == Kind::zeros) return x;
    for (float& value : x) {
        value = chance.fraction() * std::pow(10.0f, float(chance.between(-6, 4)));
        if (kind == Kind::halves) value = float(chance.between(-300, 300)) * 0.5f;
        if (kind != Kind::not_finite || chance.between(0, 3)) continue;
        const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
        const float wrong[] = {infinity, -infinity, nan, -nan, 3e38f, -3e38f, 1e-40f, 65520.0f};
        value = wrong[chance.between(0, 7)];
    }
    return x;
}

struct Buffers {
    Guarded x{1 << 16}, weight{1 << 16}, out{1 << 16}, sums{1 << 12};
};

// Runs a kernel at both edges: its result must be near to `expected`, and the same bits each time.
template <typename T, typename Run, typename Near>
void both_edges(Buffers& buffers, Report& report, const char* what, const std::vector<T>& before,
                const std::vector<T>& expected, Run run, Near close) {
    std::vector<T> results[2];
    for (Edge edge : {Edge::end, Edge::start}) {
        T* out = buffers.out.copy(edge, before);
        run(edge, out);
        std::vector<T>& result = results[edge == Edge::start];
        result.assign(out, out + before.size());
        bool all = true;
        for (size_t i = 0; i < expected.size(); ++i) all = all && close(i, result[i], expected[i]);
        report.expect(all, what);
    }
    report.expect(same(results[0].data(), results[1].data(), before.size()), "the same call gave other bits");
}

void digits_case(const Kernels& kernels, Buffers& buffers, Report& report, const std::vector<float>& x, float scale) {
    const size_t count = x.size();
    const auto equal = [](size_t, int8_t a, int8_t b) { return a == b; };
    std::vector<int8_t> expected(count);
    const int32_t sum = kScalar.quantize(x.data(), scale, count, expected.data());
    both_edges(
        buffers, report, "quantize", std::vector<int8_t>(count, 0x5a), expected,
        [&](Edge edge, int8_t* out) {
            const float* from = buffers.x.copy(edge, x);
            report.expect(kernels.quantize(from, scale, count, out) == sum, "the sum of quantize");
        },
        equal);
    for (size_t planes = 2; planes <= 3; ++planes) {
        std::vector<int32_t> sums(planes);
        expected.assign(planes * count, 0);
        const float wide = scale * largest_of(planes) / 127.0f;
        kScalar.split(x.data(), wide, count, planes, expected.data(), count, sums.data());
        both_edges(
            buffers, report, "split", std::vector<int8_t>(planes * count, 0x5a), expected,
            [&](Edge edge, int8_t* out) {
                const float* from = buffers.x.copy(edge, x);
                int32_t* found = buffers.sums.filled(edge, planes, 7);
                kernels.split(from, wide, count, planes, out, count, found);
                report.expect(same(found, sums.data(), planes), "the sums of split");
            },
            equal);
    }
}

void largest_case(const Kernels& kernels, Buffers& buffers, Report& report, const std::vector<float>& x) {
    const float expected = kScalar.largest(x.data(), x.size());
    for (Edge edge : {Edge::end, Edge::start}) {
        const float found = kernels.largest(buffers.x.copy(edge, x), x.size());
        report.expect(same(&found, &expected, 1), "largest");
    }
}

// Within 4 units in the last place: the sum of squares in double, then three roundings.
void norm_case(const Kernels& kernels, Buffers& buffers, Report& report, const std::vector<float>& x,
               const std::vector<float>& weight) {
    std::vector<float> expected(x.size());
    kScalar.norm(x.data(), weight.data(), 1e-5, x.size(), expected.data());
    both_edges(
        buffers, report, "norm", std::vector<float>(x.size(), 1e9f), expected,
        [&](Edge edge, float* out) {
            const float* from = buffers.x.copy(edge, x);
            kernels.norm(from, buffers.weight.copy(edge, weight), 1e-5, x.size(), out);
        },
        [](size_t, float a, float b) { return near(a, b, 4.8e-7 * std::fabs(b) + 1e-44); });
}

// Within 2e-6 of the value, and 1e-7 times the other factor where the value vanishes. If that factor is infinite, so
// is what is left, or it is no number.
void gate_case(const Kernels& kernels, Buffers& buffers, Report& report, const std::vector<float>& x,
               const std::vector<float>& up) {
    for (Gate gate : {Gate::relu2, Gate::silu, Gate::gelu}) {
        std::vector<float> expected = x;
        kScalar.activate(gate, expected.data(), up.data(), x.size());
        both_edges(
            buffers, report, "activate", x, expected,
            [&](Edge edge, float* out) { kernels.activate(gate, out, buffers.weight.copy(edge, up), x.size()); },
            [&](size_t i, float a, float b) {
                if (std::isinf(up[i])) return !std::isfinite(a) && !std::isfinite(b);
                return near(a, b, 2e-6 * std::fabs(b) + 1e-7 * std::fabs(up[i]) + 1e-44);
            });
    }
}

void stored_case(const Kernels& kernels, Buffers& buffers, Report& report, Chance& chance,
                 const std::vector<float>& x) {
    const size_t count = x.size();
    const auto equal = [](size_t, auto a, auto b) { return same(&a, &b, 1); };
    std::vector<uint16_t> halves(count);
    kScalar.narrow(x.data(), count, halves.data());
    both_edges(
        buffers, report, "narrow", std::vector<uint16_t>(count, 0x5a5a), halves,
        [&](Edge edge, uint16_t* out) { kernels.narrow(buffers.x.copy(edge, x), count, out); }, equal);
    for (Float kind : {Float::f16, Float::bf16, Float::f32}) {
        std::vector<uint8_t> data(count * (kind == Float::f32 ? 4 : 2));
        for (uint8_t& byte : data) byte = uint8_t(chance.next());
        std::vector<float> expected(count);
        kScalar.widen(data.data(), kind, 0.75f, count, expected.data());
        both_edges(
            buffers, report, "widen", std::vector<float>(count), expected,
            [&](Edge edge, float* out) { kernels.widen(buffers.weight.copy(edge, data), kind, 0.75f, count, out); },
            [&](size_t, float a, float b) { return a != a ? b != b : same(&a, &b, 1); });
    }
}

// One plane to the bit but for the last addition; with more, sums of floats of the size of the largest term.
void finish_case(const Kernels& kernels, Buffers& buffers, Report& report, Chance& chance, size_t planes, size_t step,
                 bool add) {
    AT("%s finish, %zu planes, step %zu", kernels.name, planes, step);
    std::vector<int32_t> sums(planes * kRows);
    for (int32_t& sum : sums) sum = chance.between(-2250000, 2250000);
    std::vector<float> scale(step ? kRows : 1), before(kRows);
    for (float& value : scale) value = 1.5f + chance.fraction();
    for (float& value : before) value = 100 * chance.fraction();
    std::vector<float> expected = before;
    kScalar.finish(sums.data(), planes, scale.data(), step, 12.5f, add, expected.data());
    both_edges(
        buffers, report, "finish", before, expected,
        [&](Edge edge, float* out) {
            const float* scales = buffers.weight.copy(edge, scale);
            kernels.finish(buffers.x.copy(edge, sums), planes, scales, step, 12.5f, add, out);
        },
        [&](size_t row, float a, float b) {
            double size = add ? std::fabs(double(before[row])) : 0, sum = 0;
            for (size_t plane = 0; plane < planes; ++plane)
                sum = sum * 256 + std::fabs(double(sums[plane * kRows + row]));
            size += sum * double(scale[row * step]) / 12.5;
            return near(a, b, planes == 1 && !add ? 0 : 2.4e-7 * size);
        });
}

}  // namespace

void check_floats(const Kernels& kernels, Report& report) {
    Buffers buffers;
    Chance chance(5);
    for (size_t count = 0; count <= 2560; count = count < 70 ? count + 1 : count < 300 ? count + 23 : count * 2 + 1)
        for (Kind kind : {Kind::ordinary, Kind::halves, Kind::zeros, Kind::not_finite}) {
            if (!count && kind != Kind::zeros) continue;
            AT("%s floats, %zu of kind %d", kernels.name, count, int(kind));
            const std::vector<float> x = numbers(chance, kind, count), other = numbers(chance, kind, count);
            const float most = kScalar.largest(x.data(), count);
            largest_case(kernels, buffers, report, x);
            for (float scale : {1.0f, 127.0f / (most > 1e-5f ? most : 1e-5f)})
                digits_case(kernels, buffers, report, x, scale);
            if (count) norm_case(kernels, buffers, report, x, other);
            gate_case(kernels, buffers, report, x, other);
            stored_case(kernels, buffers, report, chance, x);
        }
    for (size_t planes = 1; planes <= 3; ++planes)
        for (size_t step : {0, 1})
            for (bool add : {false, true}) finish_case(kernels, buffers, report, chance, planes, step, add);
}

}  // namespace bitnet::check
