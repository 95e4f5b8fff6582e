// AVX2 with the four-way dot products of AVX-VNNI: the same source, with the flag that chooses them.
#include "avx2.cpp"
