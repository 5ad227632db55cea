// Column sums, norms and best heads from partial results, in an order that does not depend on the number of threads.
#pragma once
#include "softmax.h"

namespace rsattn {
namespace {

// sums[j] += sum_r scores[r][j] * weight[r]
inline void add_columns(float* sums, const float* scores, int64_t row, const float* weight, int64_t rows,
                        int64_t columns) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS, scores += TILE_ROWS * row, weight += TILE_ROWS)
        for (int64_t j = 0; j < columns; j += LANES) {
            Vec s = load(sums + j);
#pragma GCC unroll 6
            for (int r = 0; r < TILE_ROWS; ++r) s += load(scores + r * row + j) * weight[r];
            store(sums + j, s);
        }
    for (; rows > 0; --rows, scores += row, ++weight)
        for (int64_t j = 0; j < columns; j += LANES) store(sums + j, load(sums + j) + load(scores + j) * weight[0]);
}

// partial[0][j] <- sum_p partial[p][j], p in order, in rows of `size`; returns the largest of these, NaN if one is.
inline float add_parts(float* partial, int64_t parts, int64_t size, int64_t columns) {
    Vec most = broadcast(0.0f), strange = broadcast(0.0f);
    for (int64_t j = 0; j < columns; j += LANES) {
        Vec s = load(partial + j);
        for (int64_t p = 1; p < parts; ++p) s += load(partial + p * size + j);
        store(partial + j, s);
        most = max(s, most);
        strange += s - s;  // NaN stays
    }
    return largest(most) + sum(strange);
}

inline bool beats(float a, float b) { return a > b || (a != a && b == b); }

// The lowest index of the largest norm. NaN is larger than any number, as in torch.argmax.
inline int64_t best_of(const float* norms, int64_t heads) {
    int64_t best = 0;
    for (int64_t h = 1; h < heads; ++h)
        if (beats(norms[h], norms[best])) best = h;
    return best;
}

}  // namespace
}  // namespace rsattn
