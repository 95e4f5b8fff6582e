// AVX-512 with VNNI and VBMI: the same source, with the flag that chooses the denser order.
#include "avx512.cpp"
