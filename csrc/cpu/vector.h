// One vector register of the instruction set this file is compiled for, in the compiler's vector types: the same code
// works for AVX-512, AVX2, NEON and SSE2. Intrinsics are used only if compilers do not find the instruction.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#define RSATTN_INLINE inline __attribute__((always_inline))

namespace rsattn {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_VECTORS = 4;  // 32 registers: 6 x 4 sums, 4 columns, 1 row
#define RSATTN_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define RSATTN_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE_VECTORS = 2;  // 16 registers: 6 x 2 sums, 2 columns, 1 row
#define RSATTN_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define RSATTN_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
constexpr int LANES = 4;
#if defined(__aarch64__)
constexpr int TILE_VECTORS = 4;
#else
constexpr int TILE_VECTORS = 2;
#endif
#define RSATTN_LOW 0, 4, 1, 5
#define RSATTN_HIGH 2, 6, 3, 7
#endif
constexpr int TILE_ROWS = 6;

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t WordVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

template <class V, class T>
RSATTN_INLINE V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}
template <class T>
RSATTN_INLINE Vec load(const T* p) {
    return load_as<Vec>(p);
}
template <class V, class T>
RSATTN_INLINE void store(T* p, V v) {
    std::memcpy(p, &v, sizeof(V));
}
RSATTN_INLINE Vec broadcast(float x) { return Vec{} + x; }
RSATTN_INLINE WordVec broadcast(uint32_t x) { return WordVec{} + x; }

// The second operand if either is NaN, as on x86.
RSATTN_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

#if defined(__clang__)
#define RSATTN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RSATTN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, WordVec{__VA_ARGS__})
#endif

// Folds halves onto each other: log2(LANES) dependent steps instead of LANES.
template <class F>
RSATTN_INLINE float fold(Vec v, F combine) {
#if defined(__AVX512F__)
    v = combine(v, RSATTN_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = combine(v, RSATTN_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = combine(v, RSATTN_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = combine(v, RSATTN_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif defined(__AVX__)
    v = combine(v, RSATTN_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = combine(v, RSATTN_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    v = combine(v, RSATTN_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
#else
    v = combine(v, RSATTN_SHUFFLE(v, v, 2, 3, 0, 1));
    v = combine(v, RSATTN_SHUFFLE(v, v, 1, 0, 3, 2));
#endif
    return v[0];
}
RSATTN_INLINE float sum(Vec v) {
    return fold(v, [](Vec a, Vec b) { return a + b; });
}
RSATTN_INLINE float largest(Vec v) {
    return fold(v, [](Vec a, Vec b) { return max(a, b); });
}

// 2^x for x <= 126; 0 below -127, NaN for NaN. 2^f on [-1/2, 1/2] is a polynomial of degree 5 that is 1 at 0 and has a
// relative error of at most 9e-8 (a minimax fit by Lawson's iteration).
RSATTN_INLINE Vec exp2(Vec x) {
    const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    x = max(broadcast(-127.0f), x);
    const Vec shifted = x + shifter;
    const Vec f = x - (shifted - shifter);
    Vec p = broadcast(0.00132647296f);
    p = p * f + 0.00967151299f;
    p = p * f + 0.0555073358f;
    p = p * f + 0.240222424f;
    p = p * f + 0.693147004f;
    p = p * f + 1.0f;
    const WordVec power = ((WordVec)shifted << 23) + 0x3f800000u;
    return p * (Vec)power;
}

// a0 b0 a1 b1 ...: the first half of it, and the second.
RSATTN_INLINE WordVec interleave_low(WordVec a, WordVec b) { return RSATTN_SHUFFLE(a, b, RSATTN_LOW); }
RSATTN_INLINE WordVec interleave_high(WordVec a, WordVec b) { return RSATTN_SHUFFLE(a, b, RSATTN_HIGH); }

// rows[i][j] <- rows[j][i]. Each pass interleaves row i with row i + LANES/2; log2(LANES) passes exchange the row and
// column of every element.
RSATTN_INLINE void transpose(WordVec (&rows)[LANES]) {
#pragma GCC unroll 4
    for (int pass = 1; pass < LANES; pass *= 2) {
        WordVec next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = interleave_low(rows[i], rows[i + LANES / 2]);
            next[2 * i + 1] = interleave_high(rows[i], rows[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = next[i];
    }
}

}  // namespace
}  // namespace rsattn
