// One row of scores at a time, in float32 and in units of log2.
#pragma once
#include "words.h"

namespace rsattn {
namespace {

constexpr float LOG2E = 1.44269504088896340736f;
constexpr float INFINITE = __builtin_inff();

// The factor of scores in log2 units, its sign left to the queries. Never zero: a hidden key's -inf has to stay.
inline float log2_scale(float scale) {
    const float size = __builtin_fabsf(scale) * LOG2E;
    return size < __FLT_MIN__ ? __FLT_MIN__ : size;
}

// Part of the mask of one query row as numbers to add to scores in log2 units: -inf hides a key.
struct MaskRow {
    float* add;
    bool hides = false;  // a bool mask hides a score whatever it was, NaN too

    template <class T>
    void floats(const void* from, int64_t stride, int64_t count) {
        const T* row = static_cast<const T*>(from);
        for (int64_t j = 0; j < count; ++j) {
            const float x = float(row[j * stride]), log2 = x * LOG2E;
            // A finite number stays finite: a row of finfo.min means equal scores, not that no key is seen.
            add[j] = log2 == -INFINITE && x != -INFINITE ? -3e38f : log2;
        }
    }

    // The keys [first, first + count) of row i.
    void read(const View& mask, int64_t b, int64_t h, int64_t i, int64_t first, int64_t count) {
        const int64_t stride = mask.stride[3];
        const char* row = row_at(mask, b, h, i) + first * stride * size_of(mask.type);
        hides = mask.type == Type::boolean;
        switch (mask.type) {
            case Type::boolean:
                for (int64_t j = 0; j < count; ++j) add[j] = row[j * stride] ? 0.0f : -INFINITE;
                break;
            case Type::float64: floats<double>(row, stride, count); break;
            case Type::float32: floats<float>(row, stride, count); break;
            case Type::float16: floats<Float16>(row, stride, count); break;
            case Type::bfloat16: floats<BFloat16>(row, stride, count); break;
        }
    }

    // scores <- scores * scale + mask
    void apply(float* scores, float scale, int64_t columns) const {
        for (int64_t j = 0; j < columns; j += LANES) {
            const Vec mask = load(add + j), masked = load(scores + j) * scale + mask;
            store(scores + j, hides ? (mask == -INFINITE ? mask : masked) : masked);
        }
    }
};

// NaN may be overlooked: the sum of the exponentials does not overlook it.
inline float row_maximum(const float* scores, int64_t columns) {
    Vec most[4];
    for (Vec& m : most) m = broadcast(-INFINITE);
    int64_t j = 0;
    for (; j + 4 * LANES <= columns; j += 4 * LANES)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) most[u] = max(load(scores + j + u * LANES), most[u]);
    for (; j < columns; j += LANES) most[0] = max(load(scores + j), most[0]);
    return largest(max(max(most[0], most[1]), max(most[2], most[3])));
}

inline float row_sum(const float* row, int64_t columns) {
    Vec total = {};
    for (int64_t j = 0; j < columns; j += LANES) total += load(row + j);
    return sum(total);
}

// The exponential of a score: every one is computed with these roundings.
RSATTN_INLINE Vec exponential(Vec score, float scale, float top) { return exp2(score * scale - top); }

// scores <- 2^(scores * scale - top), and the same as words for a product; the sum of the results.
template <class Dot>
float exponentials(float* scores, uint32_t* words, float scale, float top, int64_t columns) {
    Vec sums[4] = {};
    const auto step = [&](int64_t j, Vec& s) __attribute__((always_inline)) {
        const Vec p = exponential(load(scores + j), scale, top);
        store(scores + j, p);
        if (Dot::DEPTH > 1) Dot::words(words + j / Dot::DEPTH, p);
        s += p;
    };
    int64_t j = 0;
    for (; j + 4 * LANES <= columns; j += 4 * LANES)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) step(j + u * LANES, sums[u]);
    for (; j < columns; j += LANES) step(j, sums[0]);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace rsattn
