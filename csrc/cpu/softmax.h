// The softmax of one row of scores at a time, in float32 and in units of log2.
#pragma once
#include <type_traits>

#include "words.h"

namespace rsattn {
namespace {

constexpr float LOG2E = 1.44269504088896340736f;
constexpr float INFINITE = __builtin_inff();
constexpr float HUGE_SCORE = 3e38f;

// The factor from scores to log2 units, without its sign, which is applied to the queries.
inline float log2_scale(const Attention& call) { return __builtin_fabsf(call.scale) * LOG2E; }

// Whether that factor can be applied in the exponential, where it is cheapest. Not with a mask, which is added in log2
// units. Not if it is so small that differences of unscaled scores may overflow, or that it turns the -inf of a hidden
// key into NaN.
inline bool scale_waits(const Attention& call) { return !call.mask.data && log2_scale(call) >= 0x1p-100f; }

inline void multiply(float* scores, float factor, int64_t columns) {
    for (int64_t j = 0; j < columns; j += LANES) store(scores + j, load(scores + j) * factor);
}

// Part of the mask of one query row, as terms that are added to scores in log2 units: -inf hides a key.
struct MaskRow {
    float* add;
    bool hides = false;  // a bool mask hides any score, even NaN

    // Whether a number is finite is tested in the mask's own type, so that finfo.min stays finite and hides no key.
    template <class T>
    void floats(const void* from, int64_t stride, int64_t count) {
        const T* row = static_cast<const T*>(from);
        int64_t j = 0;
        if constexpr (!std::is_same_v<T, double>)
            for (; stride == 1 && j + LANES <= count; j += LANES) {
                const Vec x = widen(row + j), log2 = x * LOG2E, most = broadcast(HUGE_SCORE);
                store(add + j, x - x == 0.0f ? (log2 > most ? most : log2 < -most ? -most : log2) : log2);
            }
        for (; j < count; ++j) {
            const auto x = number_at(row + j * stride);
            const bool finite = x - x == 0;
            const float log2 = float(x) * LOG2E;
            add[j] = finite && log2 > HUGE_SCORE ? HUGE_SCORE : finite && log2 < -HUGE_SCORE ? -HUGE_SCORE : log2;
        }
    }

    void booleans(const char* row, int64_t stride, int64_t count) {
        int64_t j = 0;
        for (; stride == 1 && j + LANES <= count; j += LANES) {
            const IntVec sees = __builtin_convertvector(load_as<ByteVec>(row + j), IntVec);
            store(add + j, sees != 0 ? Vec{} : broadcast(-INFINITE));
        }
        for (; j < count; ++j) add[j] = row[j * stride] ? 0.0f : -INFINITE;
    }

    // The keys [first, first + count) of row i of sample b.
    void read(const View& mask, int64_t b, int64_t h, int64_t i, int64_t first, int64_t count) {
        const int64_t stride = mask.stride[3];
        const char* row = row_at(mask, b % mask.size[0], h, i) + first * stride * size_of(mask.type);
        hides = mask.type == Type::boolean;
        switch (mask.type) {
            case Type::boolean: booleans(row, stride, count); break;
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

// May ignore NaN, because the sum of the exponentials does not.
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

// scores <- 2^((scores - most) * scale), also as words for a product; returns their sum. It subtracts first, because a
// fused scores * scale - most * scale would round only the second product. Half an ulp of that exceeds the range of an
// exponent if logits are 2^31.
template <class Dot>
float exponentials(float* scores, uint32_t* words, float scale, float most, int64_t columns) {
    Vec sums[4] = {};
    const auto step = [&](int64_t j, Vec& s) __attribute__((always_inline)) {
        const Vec p = exp2((load(scores + j) - most) * scale);
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
