// The caller's mask and the dropout of rsattn/philox.py for one score. Scores are in units of log2.
#pragma once
#include "../calls.h"
#include "instructions.h"

namespace rsattn::cuda {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float MINUS_INFINITY = -__builtin_huge_valf();
constexpr float HUGE_SCORE = 3.0e38f;

struct Mask {
    const void* data = nullptr;  // nullptr: none
    Type type = Type::boolean;
    int repeat = 1;  // sample b uses entry b % repeat
    int64_t stride[4] = {0, 0, 0, 0};

    RSATTN_INLINE int64_t at(int b, int h, int i, int j) const {
        return b % repeat * stride[0] + h * stride[1] + i * stride[2] + j * stride[3];
    }
    // Strides from `at` to other queries and keys.
    RSATTN_INLINE int64_t from(int64_t at, int queries, int keys) const {
        return at + queries * stride[2] + keys * stride[3];
    }

    // The score of a query and key of a head, with the mask applied if there is one.
    RSATTN_INLINE float apply(float score, int64_t at) const {
        if (data == nullptr) return score;
        if (type == Type::boolean) return static_cast<const uint8_t*>(data)[at] ? score : MINUS_INFINITY;
        return score + term(at);
    }

    // What a float mask adds to a score.
    RSATTN_INLINE float term(int64_t at) const {
        float added;
        bool finite = true;
        switch (type) {
            case Type::float32: added = static_cast<const float*>(data)[at]; break;
            case Type::float16: added = to_float<float16>(static_cast<const uint16_t*>(data)[at]); break;
            case Type::bfloat16: added = to_float<bfloat16>(static_cast<const uint16_t*>(data)[at]); break;
            default:
                finite = fabs(static_cast<const double*>(data)[at]) < __builtin_huge_val();
                added = float(static_cast<const double*>(data)[at]);
        }
        if (type != Type::float64) finite = fabsf(added) < -MINUS_INFINITY;
        // The conversion must not turn a huge finite value, such as finfo.min, into -inf.
        const float log2 = added * LOG2E;
        return finite ? fmaxf(-HUGE_SCORE, fminf(log2, HUGE_SCORE)) : log2;
    }
};

// Word j % 4 of Philox4x32-10 with the seed as key and (j / 4, i, h, b) as counter, for all four j of a group.
RSATTN_INLINE void philox(uint32_t (&words)[4], uint64_t seed, int group, int i, int h, int b) {
    uint32_t c0 = uint32_t(group), c1 = uint32_t(i), c2 = uint32_t(h), c3 = uint32_t(b);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// Whether each element of a lane's fragment of eight keys from `key` on is kept: rows `row` and `row + 8`, keys
// 2 (lane % 4) and the next. A group of four keys belongs to two lanes. The even lane draws for the first row, the odd
// lane for the second, and they exchange halves.
RSATTN_INLINE void draw_rows(bool (&keep)[4], const Dropout& dropout, uint64_t seed, int b, int h, int row, int key) {
    const int lane = thread_index() % 32;
    const bool odd = lane % 2;
    uint32_t words[4];
    philox(words, seed, key / 4 + lane % 4 / 2, odd ? row + 8 : row, h, b);
    const uint32_t other0 = shuffle_xor(odd ? words[0] : words[2], 1);
    const uint32_t other1 = shuffle_xor(odd ? words[1] : words[3], 1);
    keep[0] = (odd ? other0 : words[0]) >= dropout.threshold;
    keep[1] = (odd ? other1 : words[1]) >= dropout.threshold;
    keep[2] = (odd ? words[2] : other0) >= dropout.threshold;
    keep[3] = (odd ? words[3] : other1) >= dropout.threshold;
}

// The same for transposed fragments, with bit i set if element i is dropped: keys `key` and `key` + 8, queries `row`
// and the next. The four lanes that differ in bits 2 and 3 have the four keys of two groups. Each draws for one of the
// four (group, query), and they exchange words.
RSATTN_INLINE uint32_t dropped_columns(const Dropout& dropout, uint64_t seed, int b, int h, int row, int key) {
    const int lane = thread_index() % 32;
    const bool low = lane & 4, high = lane & 8;
    uint32_t words[4];
    philox(words, seed, key / 4 + (high ? 2 : 0), row + (low ? 1 : 0), h, b);
    // A 4 x 4 transpose: word w of draw d becomes element d of lane w.
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
        const uint32_t given = shuffle_xor(low ? words[pair] : words[pair + 1], 4);
        words[pair] = low ? given : words[pair];
        words[pair + 1] = low ? words[pair + 1] : given;
    }
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const uint32_t given = shuffle_xor(high ? words[pair] : words[pair + 2], 8);
        words[pair] = high ? given : words[pair];
        words[pair + 2] = high ? words[pair + 2] : given;
    }
    uint32_t dropped = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) dropped |= uint32_t(words[i] < dropout.threshold) << i;
    return dropped;
}

}  // namespace rsattn::cuda
