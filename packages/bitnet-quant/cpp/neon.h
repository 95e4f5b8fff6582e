// What the tables of Arm share: the kernels of floats, which every 64-bit processor of that family runs.
#pragma once

#include "kernels.h"

namespace bitnet::neon {

void dense(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
           size_t stride, size_t tokens, float* out);
void spread(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
            float* out);
void finish(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add, float* out);
void norm(const float* x, const float* weight, double eps, size_t count, float* out);
float largest(const float* x, size_t count);
int32_t quantize(const float* x, float scale, size_t count, int8_t* out);
void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums);
void activate(Gate kind, float* gate, const float* up, size_t count);
void widen(const uint8_t* data, Float kind, float scale, size_t count, float* out);
void narrow(const float* x, size_t count, uint16_t* out);
void attend(const Attention* call);
void unpack(Wire wire, const uint8_t* from, ptrdiff_t stride, size_t count, size_t field, uint8_t* out);
uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out);

}  // namespace bitnet::neon
