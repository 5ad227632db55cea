// The 32-bit words that a matrix product reads. Each holds one float32, or two bfloat16 that are neighbors along the
// summed dimension. The code above this file is the same for both.
#pragma once
#include "convert.h"

namespace rsattn {
namespace {

struct Single {
    static constexpr int DEPTH = 1;  // terms of the sum in a word
    static RSATTN_INLINE Vec dot(Vec sum, WordVec a, WordVec b) { return sum + (Vec)a * (Vec)b; }
    static RSATTN_INLINE void words(uint32_t* to, Vec v) { store(to, v); }
    static bool holds(Type type) { return type == Type::float32; }
};

#if defined(__AVX512BF16__)
struct Pair {
    static constexpr int DEPTH = 2;
    static RSATTN_INLINE Vec dot(Vec sum, WordVec a, WordVec b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static RSATTN_INLINE void words(uint32_t* to, Vec v) { narrow(reinterpret_cast<BFloat16*>(to), v); }
    // A word for each lane from two rows that are neighbors along the summed dimension.
    static RSATTN_INLINE WordVec stack(const Vec* rows) {
        const WordVec low = (WordVec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[0]));
        const WordVec high = (WordVec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[1]));
        return low | high << 16;
    }
    static bool holds(Type type) { return type == Type::bfloat16; }
};
#endif

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The words of a row of `count` elements, and the memory for it: whole vectors of words, so that it can be filled one
// vector of floats at a time.
template <class Dot>
constexpr int64_t words_in(int64_t count) {
    return divide_up(count, Dot::DEPTH);
}
template <class Dot>
constexpr int64_t words_room(int64_t count) {
    return round_up(words_in<Dot>(count), LANES);
}

// Floats to words. `from` is readable, and valid or zero, up to a whole number of vectors.
template <class Dot>
RSATTN_INLINE void to_words(uint32_t* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) Dot::words(to + i / Dot::DEPTH, load(from + i));
}

}  // namespace
}  // namespace rsattn
