// NEON with dot products of four bytes: the same source, with the flag that chooses them.
#include "neon.cpp"
