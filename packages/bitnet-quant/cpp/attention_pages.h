// The walk of attention over pages, the same for every instruction set. A file includes it in its own anonymous
// namespace, behind what it is made of: `scores`, `soften`, `mix_part`, `divide`, and how wide and tall they are:
// kLanes, floats of a vector; kTall and kLow, rows that are taken together, the most first.

template <Held H, size_t R>
void mix(const Attention& call, size_t row, const uint8_t* values, const float* fades, size_t from, size_t to) {
    size_t at = 0;
    for (; at + 32 <= call.padded; at += 32) mix_part<H, R, 32 / kLanes>(call, row, values, at, fades, from, to);
    if (at < call.padded) mix_part<H, R, 16 / kLanes>(call, row, values, at, fades, from, to);
}

// R rows' scores or weights at a page's positions, each times that position's scale.
template <size_t R>
void scale_rows(const Attention& call, size_t row, const uint8_t* scales) {
    for (size_t r = 0; r < R; ++r)
        for (size_t i = 0; i < kPositions; ++i) {
            float scale;
            __builtin_memcpy(&scale, scales + 4 * i, sizeof scale);
            call.weights[(row + r) * kPositions + i] *= scale;
        }
}

// One page for R rows. Rows that see different parts of it are mixed one by one, so that what one does not see
// cannot reach it, whatever it is.
template <Held H, size_t R>
void page_tile(const Attention& call, size_t row, size_t page, const uint8_t* keys) {
    const int64_t start = int64_t(page * kPositions), end = start + int64_t(kPositions);
    const uint8_t* values = keys + width_of(H) * call.size * kPositions;
    const uint8_t* scales = values + width_of(H) * call.padded * kPositions;  // where there are any
    size_t from[R], to[R];
    bool same = true;
    for (size_t r = 0; r < R; ++r) {
        const int64_t first = call.first[row + r], last = call.last[row + r];
        from[r] = size_t((first > start ? first : start) - start);
        to[r] = last <= start || first >= end ? 0 : size_t((last < end ? last : end) - start);
        same = same && from[r] == from[0] && to[r] == to[0];
    }
    scores<H, R>(call, row, keys);
    if (H == Held::int8) scale_rows<R>(call, row, scales);
    float fades[R];
    for (size_t r = 0; r < R; ++r)
        if (from[r] < to[r]) fades[r] = soften(call, row + r, from[r], to[r]);
    if (H == Held::int8) scale_rows<R>(call, row, scales + 4 * kPositions);
    if (same) {
        if (from[0] < to[0]) mix<H, R>(call, row, values, fades, from[0], to[0]);
        return;
    }
    for (size_t r = 0; r < R; ++r)
        if (from[r] < to[r]) mix<H, 1>(call, row + r, values, fades + r, from[r], to[r]);
}

// Pages lie far apart, where no processor looks ahead by itself.
template <Held H>
void fetch(const Attention& call, const uint8_t* keys) {
    const size_t bytes = width_of(H) * (call.size + call.padded) * kPositions;
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(keys + at);
}

template <Held H>
void attend_over(const Attention& call) {
    int64_t first = call.first[0], last = call.last[0];
    for (size_t row = 0; row < call.rows; ++row) {
        first = call.first[row] < first ? call.first[row] : first;
        last = call.last[row] > last ? call.last[row] : last;
        call.peak[row] = -__builtin_inff();
        call.total[row] = 0;
        for (size_t i = 0; i < call.padded; ++i) call.mixed[row * call.padded + i] = 0;
    }
    for (size_t page = size_t(first) / kPositions; page * kPositions < size_t(last); ++page) {
        const uint8_t* keys = call.pages[page] + call.offset;
        if ((page + 1) * kPositions < size_t(last)) fetch<H>(call, call.pages[page + 1] + call.offset);
        size_t row = 0;
        for (; row + kTall <= call.rows; row += kTall) page_tile<H, kTall>(call, row, page, keys);
        for (; row + kLow <= call.rows; row += kLow) page_tile<H, kLow>(call, row, page, keys);
        for (; row < call.rows; ++row) page_tile<H, 1>(call, row, page, keys);
    }
    for (size_t row = 0; row < call.rows; ++row) divide(call.mixed + row * call.padded, call.padded, call.total[row]);
}
