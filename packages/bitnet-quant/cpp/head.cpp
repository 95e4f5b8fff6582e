// How rows are left out, and why none of them is missed.
//
// A state is integers X (two digits each), a row integers W = U - 128, and its logit, by `finish`, is S * f rounded to
// a float: f = scale / divisor, a float, and S a float near the integer T = sum of W * X, which 32-bit sums hold
// exactly. The first bits of U give V, the sum in which what is below them stands in the middle of what it could be.
// What V lacks is a sum of products with X, so by Cauchy and Schwarz |T - V| <= width = rest * length: both are rounded
// up. S is made of the sums H and L of two digits, T = 256 * H + L, by roundings of 2**-24 each of 256 * H, L and the
// whole: |S - T| <= 2**-23 * (|T| + |L|), and |L| <= low = 128 * 128 * columns. The slack is twice that, which covers
// the roundings of this bound itself (2**-53 each; V and `low` are exact, being integers and halves below 2**52). So S
// is at most U' = V + width + 2**-22 * (|V| + width + low). Rounding is monotone, f is not negative, and S * f is exact
// in a double: float(U' * f) is at least the logit, and a row where this is below the floor is below it. A row whose
// scale is no number is never left out, because comparisons with its bound are false.
//
// The floor is from logits that are known: one of each of the `best` groups that promise most. These are `best` rows,
// so the lowest of them is at most the lowest of the `best` highest, and the highest of them at most the highest of
// all.
#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

namespace bitnet {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr size_t kStride = 8;   // groups whose rows are read on together
constexpr size_t kShared = 64;  // tokens that share a reading of all rows
constexpr size_t kBest = 64;    // highest logits that tokens want together; for more it is faster to read all

// The lowest logit in reach. Less a little, because a sampler may round when it takes the margin off.
float lowest(double least, double highest, double margin) {
    if (!std::isfinite(highest)) return float(std::min(least, highest));
    const double edge = highest - margin - 0x1p-20 * (std::fabs(highest) + margin);
    return std::nextafter(float(std::min(least, edge)), kNothing);
}

}  // namespace

Head::Head(const Kernels& kernels, Pool& pool) : kernels_(kernels), pool_(pool), counts_(pool.threads()) {}

size_t Head::scratch_bytes(const Extent& extent) const {
    const size_t groups = extent.groups(), tokens = tokens_.size();
    return tokens * groups * (3 * kRows + 2) * 4 + pool_.threads() * kWholeRows * extent.padded() + 64;
}

void Head::use(uint8_t* scratch, const Extent& extent) {
    groups_ = extent.groups();
    if (!scratch) return;
    const size_t tokens = tokens_.size();
    joined_ = scratch;
    sums_ = reinterpret_cast<int32_t*>(joined_ + pool_.threads() * kWholeRows * extent.padded());
    upper_ = reinterpret_cast<float*>(sums_ + tokens * groups_ * 2 * kRows);
    peaks_ = upper_ + tokens * groups_ * kRows;
    order_ = reinterpret_cast<uint32_t*>(peaks_ + tokens * groups_);
}

Head::Counts Head::counts() const {
    Counts sum{};
    for (const Counts& part : counts_)
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    return sum;
}

// The nibbles alone are read first until a call in which many rows needed a bit more; then both together, until hardly
// a row needs more than that. One costs a tenth more, the other half as much again where all rows are read twice.
void Head::begin() {
    const Counts last = counts();
    if (last[0]) deep_ = deep_ ? last[2] > last[0] / 8192 : last[1] > last[0] / 6;
    std::fill(counts_.begin(), counts_.end(), Counts{});
    next_ = 0;
}

void Head::multiply(size_t thread, const HeadWeights& weights, const HeadInputs& inputs, std::span<const Reach> reaches,
                    float* logits) {
    const Call call{weights, inputs, reaches, logits};
    if (!leaves_out(call)) return read_all(thread, call);
    const size_t tokens = reaches.size(), threads = pool_.threads();
    for (size_t token = thread; token < tokens; token += threads) measure(call, token);
    pool_.meet();
    read_coarse(thread, call);
    pool_.meet();
    for (size_t token = thread; token < tokens; token += threads) find_floor(call, token);
    pool_.meet();
    Counts counts{};
    for (size_t group; (group = next_.fetch_add(kStride, std::memory_order_relaxed)) < groups_;)
        for (size_t token = 0; token < tokens; ++token)
            refine(call, token, group, std::min(kStride, groups_ - group), counts);
    for (size_t i = 1; i < counts.size(); ++i) counts_[thread][i] += counts[i];
    pool_.meet();
    for (size_t token = thread; token < tokens; token += threads) keep_reach(call, token);
}

bool Head::leaves_out(const Call& call) const {
    if (call.reaches.size() > tokens_.size()) return false;
    size_t best = 0;
    for (size_t token = 0; token < call.reaches.size(); ++token) {
        const Reach& reach = call.reaches[token];
        const float divisor = call.inputs.divisors[token];
        if (reach.best < 1 || reach.best > groups_ || !std::isfinite(reach.margin)) return false;
        if ((best += reach.best) > kBest) return false;
        if (!std::isfinite(divisor) || divisor == 0) return false;  // a state that is not finite
    }
    return true;
}

// Every row for every token.
void Head::read_all(size_t thread, const Call& call) const {
    const Extent& extent = call.weights.extent;
    const size_t tokens = call.reaches.size(), padded = extent.padded();
    alignas(64) int32_t sums[2 * kShared * kRows];
    alignas(64) float values[kRows];
    for (size_t group = groups_ * thread / pool_.threads(); group < groups_ * (thread + 1) / pool_.threads(); ++group) {
        const Planes planes(call.weights.data, extent, group);
        const size_t first = group * kRows, rows = std::min(kRows, extent.rows - first);
        for (size_t token = 0; token < tokens; token += kShared) {
            const size_t count = std::min(kShared, tokens - token);
            kernels_.planes->whole(planes.nibbles, planes.bits, planes.next, call.blocks(), call.digits(token), padded,
                                   2 * count, call.inputs.starts + 2 * token, sums,
                                   joined_ + thread * kWholeRows * padded);
            for (size_t t = 0; t < count; ++t) {
                float* to = call.logits + (token + t) * extent.rows + first;
                kernels_.finish(sums + t * 2 * kRows, 2, call.weights.scale + first, 1, call.inputs.divisors[token + t],
                                false, rows == kRows ? to : values);
                if (rows < kRows) std::memcpy(to, values, rows * sizeof(float));
            }
        }
    }
}

void Head::measure(const Call& call, size_t token) {
    const size_t padded = call.weights.extent.padded();
    const int8_t *high = call.digits(token), *low = high + padded;
    int64_t squares = 0;  // at most 2**30 a column
    for (size_t i = 0; i < padded; ++i) {
        const int32_t x = 256 * high[i] + low[i];
        squares += int64_t(x) * x;
    }
    const int32_t* starts = call.inputs.starts + 2 * token;
    const double length = std::sqrt(double(squares));
    tokens_[token] = {-(256.0 * starts[0] + starts[1]), length * (1 + 0x1p-50), kNothing};
}

// `upper` is no less than the logits of a group of which the sums of the first 4 + `level` bits are given, and `about`,
// where it is wanted, what they would be without the rest.
void Head::bound(const Call& call, size_t group, size_t token, size_t level, const int32_t* sums, float* upper,
                 float* about) const {
    const Token& from = tokens_[token];
    const double step = double(16 >> level), offset = ((step - 1) / 2 - 128) * from.sum, length = from.length;
    const double low = 128.0 * 128.0 * double(call.weights.extent.padded());
    const float divisor = call.inputs.divisors[token], *scale = call.weights.scale + group * kRows;
    const float* rest = call.weights.rest + (level * groups_ + group) * kRows;
    for (size_t row = 0; row < kRows; ++row) {
        const double value = step * (256.0 * sums[row] + sums[kRows + row]) + offset;
        const double width = double(rest[row]) * length, factor = double(scale[row] / divisor);
        upper[row] = float((value + width + 0x1p-22 * (std::fabs(value) + width + low)) * factor);
        if (about) about[row] = float(value * factor);
    }
}

void Head::read_coarse(size_t thread, const Call& call) {
    const Extent& extent = call.weights.extent;
    const size_t tokens = call.reaches.size();
    const size_t from = groups_ * thread / pool_.threads(), to = groups_ * (thread + 1) / pool_.threads();
    alignas(64) float about[kRows];
    for (size_t group = from; group < to; ++group) {
        const Planes planes(call.weights.data, extent, group);
        const size_t rows = std::min(kRows, extent.rows - group * kRows);
        int32_t* sums = sums_ + group * tokens * 2 * kRows;
        for (size_t token = 0; token < tokens; token += kTokens / 2) {
            const size_t count = std::min(kTokens / 2, tokens - token);
            kernels_.planes->coarse(planes.nibbles, deep_ ? planes.bits : nullptr, call.blocks(), call.digits(token),
                                    extent.padded(), 2 * count, sums + token * 2 * kRows);
        }
        for (size_t token = 0; token < tokens; ++token) {
            bound(call, group, token, deep_, sums + token * 2 * kRows, upper_ + at(token, group) * kRows, about);
            float peak = kNothing;
            for (size_t row = 0; row < rows; ++row) peak = about[row] > peak ? about[row] : peak;
            peaks_[at(token, group)] = std::isfinite(peak) ? peak : kNothing;
        }
        counts_[thread][0] += rows * tokens;
        counts_[thread][1] += deep_ ? rows * tokens : 0;
    }
}

// One more plane of some rows of groups from `first` on, into the sums of what was read of them so far.
void Head::add_plane(const Call& call, size_t token, size_t first, size_t plane, std::span<const Left> left,
                     int32_t (*sums)[2 * kRows]) const {
    const uint8_t* rows[kStride * kRows];
    int32_t found[2 * kStride * kRows];
    const size_t padded = call.weights.extent.padded();
    size_t count = 0;
    for (size_t i = 0; i < left.size(); ++i) {
        const Planes planes(call.weights.data, call.weights.extent, first + i);
        for (size_t j = 0; j < left[i].count; ++j)
            rows[count++] = planes.bits + plane * planes.next + left[i].rows[j] * padded / 8;
    }
    kernels_.planes->bits(rows, count, plane, call.blocks(), call.digits(token), padded, found);
    const int32_t* from = found;
    for (size_t i = 0; i < left.size(); ++i)
        for (size_t j = 0; j < left[i].count; ++j, from += 2)
            for (size_t digit = 0; digit < 2; ++digit) {
                int32_t& sum = sums[i][digit * kRows + left[i].rows[j]];
                sum = 2 * sum + from[digit];
            }
}

// The logits of a group whose sums are complete, as the whole head makes them.
void Head::finish(const Call& call, size_t token, size_t group, int32_t* sums, float* values) const {
    for (size_t digit = 0; digit < 2; ++digit)
        for (size_t row = 0; row < kRows; ++row)
            sums[digit * kRows + row] += call.inputs.starts[2 * token + digit] * 128;
    kernels_.finish(sums, 2, call.weights.scale + group * kRows, 1, call.inputs.divisors[token], false, values);
}

void Head::find_floor(const Call& call, size_t token) {
    const Reach& reach = call.reaches[token];
    const float* peaks = peaks_ + at(token, 0);
    uint32_t* order = order_ + at(token, 0);
    for (size_t group = 0; group < groups_; ++group) order[group] = uint32_t(group);
    const auto higher = [peaks](uint32_t a, uint32_t b) { return peaks[a] > peaks[b]; };
    std::nth_element(order, order + reach.best - 1, order + groups_, higher);
    float least = std::numeric_limits<float>::infinity(), highest = kNothing;
    for (size_t i = 0; i < reach.best; ++i) {
        const float value = peaks[order[i]] == kNothing ? kNothing : best_of(call, token, order[i]);
        least = std::min(least, value);
        highest = std::max(highest, value);
    }
    tokens_[token].floor = lowest(least, highest, reach.margin);
}

// The logit of the row that promises most in a group, or one below all if it is no number.
float Head::best_of(const Call& call, size_t token, size_t group) const {
    const size_t rows = std::min(kRows, call.weights.extent.rows - group * kRows);
    alignas(64) int32_t sums[1][2 * kRows];
    alignas(64) float upper[kRows], values[kRows];
    copy_sums(call, token, group, sums[0]);
    bound(call, group, token, deep_, sums[0], upper, values);
    Left best{{0}, 1};
    while (best.rows[0] + 1u < rows && values[best.rows[0]] != peaks_[at(token, group)]) ++best.rows[0];
    for (size_t plane = deep_; plane < kPlanes; ++plane) add_plane(call, token, group, plane, {&best, 1}, sums);
    finish(call, token, group, sums[0], values);
    return values[best.rows[0]] > kNothing ? values[best.rows[0]] : kNothing;
}

void Head::copy_sums(const Call& call, size_t token, size_t group, int32_t* to) const {
    std::memcpy(to, sums_ + (group * call.reaches.size() + token) * 2 * kRows, 2 * kRows * sizeof(int32_t));
}

void Head::Left::keep(const float* upper, float floor) {
    const size_t before = count;
    count = 0;
    for (size_t i = 0; i < before; ++i) {
        const uint8_t row = rows[i];
        rows[count] = row;
        count += !(upper[row] < floor);
    }
}

// The rows of a group that may be in reach.
Head::Left Head::choose(const Call& call, size_t token, size_t group) const {
    Left left{{}, std::min(kRows, call.weights.extent.rows - group * kRows)};
    std::iota(left.rows, left.rows + left.count, uint8_t(0));
    left.keep(upper_ + at(token, group) * kRows, tokens_[token].floor);
    return left;
}

// Reads the rows of some groups as far as they may be in reach: plane by plane, so that many rows come side by side.
void Head::refine(const Call& call, size_t token, size_t first, size_t groups, Counts& counts) const {
    alignas(64) int32_t sums[kStride][2 * kRows];
    alignas(64) float upper[kRows];
    Left left[kStride];
    size_t count = 0;
    for (size_t i = 0; i < groups; ++i) {
        left[i] = choose(call, token, first + i);
        count += left[i].count;
        if (left[i].count) copy_sums(call, token, first + i, sums[i]);
    }
    for (size_t plane = deep_; plane < kPlanes && count; ++plane) {
        add_plane(call, token, first, plane, {left, groups}, sums);
        counts[1 + plane] += count;
        if (plane + 1 >= kRests) continue;
        count = 0;
        for (size_t i = 0; i < groups; ++i) {
            if (!left[i].count) continue;
            bound(call, first + i, token, plane + 1, sums[i], upper, nullptr);
            left[i].keep(upper, tokens_[token].floor);
            count += left[i].count;
        }
    }
    for (size_t i = 0; i < groups; ++i) write(call, token, first + i, left[i], sums[i]);
}

// The logits of rows that were read to their end; the others of the group are out of reach.
void Head::write(const Call& call, size_t token, size_t group, const Left& left, int32_t* sums) const {
    const size_t all = call.weights.extent.rows, first = group * kRows;
    float *out = call.logits + token * all + first, &peak = peaks_[at(token, group)];
    std::fill(out, out + std::min(kRows, all - first), kNothing);
    peak = kNothing;
    if (!left.count) return;
    alignas(64) float values[kRows];
    finish(call, token, group, sums, values);
    for (size_t i = 0; i < left.count; ++i) {
        out[left.rows[i]] = values[left.rows[i]];
        peak = std::max(peak, values[left.rows[i]]);
    }
}

// What was read to its end and is beyond reach after all is left out like the rest, so that what remains depends on
// nothing but the logits.
void Head::keep_reach(const Call& call, size_t token) {
    const Reach& reach = call.reaches[token];
    const size_t all = call.weights.extent.rows;
    float *logits = call.logits + token * all, *found = upper_ + at(token, 0) * kRows;
    const auto each = [&](auto visit) {
        for (size_t group = 0; group < groups_; ++group)
            if (peaks_[at(token, group)] > kNothing)
                for (size_t row = group * kRows; row < std::min(all, (group + 1) * kRows); ++row) visit(logits[row]);
    };
    size_t count = 0;
    float highest = kNothing;
    each([&](float value) {
        if (!(value > kNothing)) return;
        found[count++] = value;
        highest = std::max(highest, value);
    });
    if (count < reach.best) return;
    std::nth_element(found, found + reach.best - 1, found + count, std::greater<>());
    const float floor = lowest(found[reach.best - 1], highest, reach.margin);
    each([&](float& value) {
        if (value < floor) value = kNothing;
    });
}

}  // namespace bitnet
