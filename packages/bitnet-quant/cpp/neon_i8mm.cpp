// NEON with products of small matrices of bytes: the same source, with the flag that chooses them.
#include "neon.cpp"
