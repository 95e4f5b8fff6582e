// The table of kernels, one for each instruction set. Included by files with wide compiler flags: nothing in it
// may make code, because the linker may keep a copy of it that not every processor can run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitnet {

// Ternary matrices lie in groups of 64 rows, in one of two orders. A digit is a code plus one. Rows and columns
// that a matrix lacks have digit 1, and activation 0.
// Two bits: for every 16 columns a group has 256 bytes; byte 4 * r + j holds the digits of row r at columns
// 4 * f + j in bits 2 * f and 2 * f + 1, f = 0 to 3.
// Five bits for three digits: for every 12 columns it has 160 bytes, 40 for each 16 rows: a row of 64 numbers of five
// bits, low bits first, of which number 4 * r + j is the sum of 3 ** f times the digit at column 4 * f + j, f = 0 to 2.
// Int8 matrices: for every 4 columns a group has 256 bytes, of which byte 4 * r + j is row r at column j.
// Int8 matrices in planes: a weight plus 128 is a nibble times 16, and four bits, worth 8 to 1, a plane each. All rows
// of nibbles stand first, then all rows of each plane. For every 128 columns a row has 64 bytes of nibbles, byte i with
// column i below column 64 + i; and in each plane 16 bytes, byte i with columns 16 * b + i, b = 0 to 7, at bits
// (b + plane) % 4 + b / 4 * 4: where planes are laid over one another, the four bits of a column fill a nibble.
constexpr size_t kRows = 64;
constexpr size_t kColumns = 16;    // that int8 matrices are padded to
constexpr size_t kTokens = 6;      // the most tokens of a tile
constexpr size_t kMost = 12;       // the most of a tile that is ternary, in any table
constexpr size_t kPositions = 32;  // of a page
constexpr size_t kHead = 256;      // the largest head
constexpr size_t kPlanes = 4;      // of bits, below the nibbles
constexpr size_t kWholeRows = 8;   // whose planes are joined at once

enum class Order : uint8_t { two_bits, five_bits, planes };

constexpr size_t columns_of(Order order) {
    return order == Order::two_bits ? 16 : order == Order::five_bits ? 12 : 128;
}
// Of a block of columns.
constexpr size_t bytes_of(Order order) {
    return order == Order::two_bits ? 256 : order == Order::five_bits ? 160 : 8192;
}
constexpr size_t kPlaneColumns = columns_of(Order::planes);

// The largest number that digits of so many planes hold.
constexpr float largest_of(size_t planes) { return planes == 1 ? 127.0f : planes == 2 ? 32639.0f : 8355711.0f; }

// How files hold ternary matrices. All but hf_rows have groups of digits, in row-major order.
enum class Wire : uint8_t { i2_s_128, i2_s_64, hf_rows, tq1_0, tq2_0, q2_0_64, q2_0_128 };

constexpr size_t digits_of(Wire wire) {  // of a group; hf_rows has one of its four rows in a byte
    return wire == Wire::hf_rows                              ? 1
           : wire == Wire::tq1_0 || wire == Wire::tq2_0       ? 256
           : wire == Wire::i2_s_128 || wire == Wire::q2_0_128 ? 128
                                                              : 64;
}

enum class Float : uint8_t { f16, bf16, f32 };

constexpr size_t width_of(Float kind) { return kind == Float::f32 ? 4 : 2; }  // bytes

enum class Gate : uint8_t { relu2, silu, gelu };

enum class Held : uint8_t { f16, f32, int8 };  // how a page holds keys and values

constexpr size_t width_of(Held held) { return held == Held::f32 ? 4 : held == Held::f16 ? 2 : 1; }

// Queries of one head of keys, which share its pages. A page holds keys as (size, kPositions) and values as
// (kPositions, padded), of one type; padded is size rounded up to 16. Behind int8 stand float32 scales: one for each
// position's key, then one for each position's value.
struct Attention {
    const float* queries;  // (rows, padded), scaled
    size_t rows;
    size_t size;
    size_t padded;
    const int64_t* first;  // of each row: the positions that it sees, from first to before last
    const int64_t* last;
    uint8_t* const* pages;
    size_t offset;  // bytes from a page's address to the keys
    Held held;
    float* mixed;    // (rows, padded), the result
    float* weights;  // (rows, kPositions), scratch
    float* peak;     // (rows), scratch
    float* total;    // (rows), scratch
};

// Kernels over int8 matrices in planes; sums are those of unsigned numbers times int8, over `blocks` times 128 columns.
struct PlaneKernels {
    // out (tokens, 64) = the sums of 64 rows of nibbles, or of five bits where `bits`, the first plane, is not null.
    // Two, four or six tokens: the digits of one to three inputs.
    void (*coarse)(const uint8_t* nibbles, const uint8_t* bits, size_t blocks, const int8_t* x, size_t stride,
                   size_t tokens, int32_t* out);
    // Rows of one plane, wherever they lie, times the two digits of an input: out (count, 2) = the sums of their bits.
    void (*bits)(const uint8_t* const* rows, size_t count, size_t plane, size_t blocks, const int8_t* x, size_t stride,
                 int32_t* out);
    // All planes of 64 rows, those of bits `next` bytes apart, times an even number of tokens: sums (tokens, 64), plus
    // `start` times 128. `scratch` has kWholeRows rows of bytes.
    void (*whole)(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks, const int8_t* x,
                  size_t stride, size_t tokens, const int32_t* start, int32_t* sums, uint8_t* scratch);
    // A row of numbers into the planes, the bits `next` bytes apart; squares (kPlanes) = the sums of squares of 2 * n -
    // m, where n is what a number has below its first 4 + i bits, and m the most that this can be.
    void (*place)(const uint8_t* numbers, size_t blocks, size_t next, uint8_t* nibbles, uint8_t* bits,
                  int64_t* squares);
};

struct Kernels {
    const char* name;
    Order order;  // of ternary matrices

    size_t few;  // the most tokens that `ternary` takes at once

    // Ternary: out (tokens, 64) = start + the sums of digits (unsigned) times int8, over `blocks` of columns.
    void (*ternary)(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens,
                    const int32_t* start, int32_t* out);
    // Where many tokens are worth it: `blocks` of a group in another order as `wide` blocks in that of two bits, with
    // digit 0 where there are no columns; and the sums over that. Null where the order is of two bits.
    void (*expand)(const uint8_t* group, size_t blocks, size_t wide, uint8_t* out);
    void (*expanded)(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens,
                     const int32_t* start, int32_t* out);
    // Int8: out (tokens, 64) = the sums over `blocks` times 16 columns. `start` is minus the sum of each x, for
    // those who multiply by unsigned weights.
    void (*bytes)(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens,
                  const int32_t* start, int32_t* out);
    // Floats: out (tokens, 64) = up to 64 rows of `columns`, `row_bytes` apart, times x.
    void (*dense)(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
                  size_t stride, size_t tokens, float* out);
    // Adapters: out (tokens, 64) = the sums over `rank` of weights (tokens, rank) times rows of 64, float16 or float32.
    void (*spread)(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
                   float* out);
    // 64 sums of each of `planes` digits, base 256 and the highest first, as floats times scale / divisor;
    // `step` is 0 for one scale and 1 for one a row. Added to out, or put there.
    void (*finish)(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add,
                   float* out);

    // RMS norm; the sum of squares runs in double.
    void (*norm)(const float* x, const float* weight, double eps, size_t count, float* out);
    // The largest magnitude; a NaN counts as the largest.
    float (*largest)(const float* x, size_t count);
    // x * scale to the nearest integer, half to even, as int8; gives the sum.
    int32_t (*quantize)(const float* x, float scale, size_t count, int8_t* out);
    // The same in `planes` digits of base 256, two or three, the highest first, `stride` apart; gives the sum of each.
    void (*split)(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums);
    // gate = activation(gate) * up.
    void (*activate)(Gate kind, float* gate, const float* up, size_t count);
    // Stored floats times a scale; floats as float16, those beyond its range as its largest.
    void (*widen)(const uint8_t* data, Float kind, float scale, size_t count, float* out);
    void (*narrow)(const float* x, size_t count, uint16_t* out);
    // Softmax of the scores over what each row sees, times the values; page by page, whoever else is in the call.
    void (*attend)(const Attention* call);

    // `count` groups of a file, `stride` bytes apart, as digits of a byte each; of hf_rows the given one of four.
    void (*unpack)(Wire wire, const uint8_t* from, ptrdiff_t stride, size_t count, size_t field, uint8_t* out);
    // Digits of 16 rows, `stride` apart, into their quarter of a group in this table's order; `columns` are of whole
    // blocks, and 4 bytes behind each row may be read. Gives what is not zero if a digit is 3.
    uint32_t (*place)(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out);

    const PlaneKernels* planes = nullptr;  // where int8 matrices are read in part only
};

extern const Kernels kScalar;
#if defined(BITNET_X86)
extern const Kernels kAvx2;
extern const Kernels kAvxVnni;
extern const Kernels kAvx512;
extern const Kernels kAvx512Vbmi;
#elif defined(BITNET_ARM)
extern const Kernels kNeon;
extern const Kernels kDotprod;
extern const Kernels kI8mm;
#endif

}  // namespace bitnet
