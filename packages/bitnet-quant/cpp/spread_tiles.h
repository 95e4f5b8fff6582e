// The second product of an adapter, the same for every instruction set. A file includes it in its own anonymous
// namespace, behind what it is made of: `held`, `all`, `fused` and `store`; kWide, floats of a vector; and kAcross,
// vectors of each token that are summed at a time.

template <Held H, size_t T>
void spread_tile(const uint8_t* rows, size_t rank, const float* weights, size_t stride, float* out) {
    for (size_t at = 0; at < kRows; at += kAcross * kWide) {
        decltype(all(0.0f)) sums[T][kAcross];
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (size_t v = 0; v < kAcross; ++v) sums[t][v] = all(0.0f);
        for (size_t r = 0; r < rank; ++r) {
            decltype(all(0.0f)) row[kAcross];
#pragma GCC unroll 4
            for (size_t v = 0; v < kAcross; ++v) row[v] = held<H>(rows, r * kRows + at + v * kWide);
#pragma GCC unroll 6
            for (size_t t = 0; t < T; ++t) {
                const auto weight = all(weights[t * stride + r]);
#pragma GCC unroll 4
                for (size_t v = 0; v < kAcross; ++v) sums[t][v] = fused(weight, row[v], sums[t][v]);
            }
        }
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (size_t v = 0; v < kAcross; ++v) store(out + t * kRows + at + v * kWide, sums[t][v]);
    }
}

template <Held H>
void spread_over(const uint8_t* rows, size_t rank, const float* weights, size_t stride, size_t tokens, float* out) {
    for (; tokens >= 6; tokens -= 6, weights += 6 * stride, out += 6 * kRows)
        spread_tile<H, 6>(rows, rank, weights, stride, out);
    for (; tokens >= 2; tokens -= 2, weights += 2 * stride, out += 2 * kRows)
        spread_tile<H, 2>(rows, rank, weights, stride, out);
    if (tokens) spread_tile<H, 1>(rows, rank, weights, stride, out);
}
