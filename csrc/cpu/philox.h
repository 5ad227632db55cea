// The dropout stream of rsattn/philox.py: Philox4x32-10, key = the seed, counter = (j / 4, i, h, b), word j % 4.
#pragma once
#include "convert.h"

namespace rsattn {
namespace {

// probs[j] <- probs[j] if it is kept, otherwise 0, for `count` keys from key `first`, a multiple of 4. The caller
// applies the factor 1 / (1 - p).
inline void drop(float* probs, int64_t first, int64_t count, const Dropout& dropout, int64_t b, int64_t h, int64_t i) {
    for (int64_t j = 0; j < count; j += 4 * LANES) {
        uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            c0[lane] = uint32_t((first + j) / 4 + lane);
            c1[lane] = uint32_t(i);
            c2[lane] = uint32_t(h);
            c3[lane] = uint32_t(b);
        }
        uint32_t k0 = uint32_t(*dropout.seed), k1 = uint32_t(*dropout.seed >> 32);
        for (int round = 0; round < 10; ++round) {
            for (int lane = 0; lane < LANES; ++lane) {
                const uint64_t p0 = uint64_t(0xD2511F53u) * c0[lane], p1 = uint64_t(0xCD9E8D57u) * c2[lane];
                c0[lane] = uint32_t(p1 >> 32) ^ c1[lane] ^ k0;
                c1[lane] = uint32_t(p1);
                c2[lane] = uint32_t(p0 >> 32) ^ c3[lane] ^ k1;
                c3[lane] = uint32_t(p0);
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        uint32_t words[4 * LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            words[4 * lane] = c0[lane];
            words[4 * lane + 1] = c1[lane];
            words[4 * lane + 2] = c2[lane];
            words[4 * lane + 3] = c3[lane];
        }
        const int64_t here = count - j < 4 * LANES ? count - j : 4 * LANES;
        for (int64_t k = 0; k < here; ++k) probs[j + k] = words[k] >= dropout.threshold ? probs[j + k] : 0.0f;
    }
}

}  // namespace
}  // namespace rsattn
