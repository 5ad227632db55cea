// The residual: the best head's output is added to the projection's. Also the transpose, for gradients; gate.h has both
// with a gate. A thread handles one element at a time; E, D and strides are arbitrary.
#pragma once
#include "scores.h"

namespace rsattn::cuda {

// A (b, n, channel) or (b, h, n, e) tensor of any of the three types.
struct Numbers {
    void* data = nullptr;
    Type type = Type::float32;
    int64_t stride[4] = {0, 0, 0, 0};

    RSATTN_INLINE int64_t at(int64_t b, int64_t h, int64_t n, int64_t e) const {
        return b * stride[0] + h * stride[1] + n * stride[2] + e * stride[3];
    }
    RSATTN_INLINE float load(int64_t at) const {
        switch (type) {
            case Type::float16: return to_float<float16>(static_cast<const uint16_t*>(data)[at]);
            case Type::bfloat16: return to_float<bfloat16>(static_cast<const uint16_t*>(data)[at]);
            default: return static_cast<const float*>(data)[at];
        }
    }
    // Several elements, at `at(i)`, or 0 if not wanted. The type is tested once, so that all loads are in flight
    // together.
    template <int COUNT, class At>
    RSATTN_INLINE void load(const At& at, const bool (&wanted)[COUNT], float (&to)[COUNT]) const {
        const auto all = [&](const auto& one) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) to[i] = wanted[i] ? one(at(i)) : 0.0f;
        };
        const uint16_t* const halves = static_cast<const uint16_t*>(data);
        switch (type) {
            case Type::float16: return all([&](int64_t i) { return to_float<float16>(halves[i]); });
            case Type::bfloat16: return all([&](int64_t i) { return to_float<bfloat16>(halves[i]); });
            default: return all([&](int64_t i) { return static_cast<const float*>(data)[i]; });
        }
    }
    RSATTN_INLINE float rounded(float value) const {
        switch (type) {
            case Type::float16: return to_float<float16>(round_to<float16>(value));
            case Type::bfloat16: return to_float<bfloat16>(round_to<bfloat16>(value));
            default: return value;
        }
    }
    RSATTN_INLINE void store(int64_t at, float value) const {
        switch (type) {
            case Type::float16: static_cast<uint16_t*>(data)[at] = round_to<float16>(value); break;
            case Type::bfloat16: static_cast<uint16_t*>(data)[at] = round_to<bfloat16>(value); break;
            default: static_cast<float*>(data)[at] = value;
        }
    }
};

constexpr int EPILOGUE_THREADS = 256;

// The output for a best head out of range: a kernel cannot raise an error without making the GPU unusable.
constexpr float UNKNOWN = __builtin_nanf("");

struct AddBestHeadParameters {
    Numbers projected, output, result;
    const int64_t* best_head;
    int64_t heads;
    int length, dim, width;
    bool tile;  // otherwise slot
};

// A block for each token.
struct AddBestHead {
    using Parameters = AddBestHeadParameters;
    static constexpr int BLOCK_THREADS = EPILOGUE_THREADS;
    static constexpr int BLOCKS_RESIDENT = 1;

    template <class>
    RSATTN_INLINE static void run(const Parameters& p) {
        const int b = block_index() / p.length, n = block_index() % p.length;
        const int64_t best = p.best_head[b];
        const bool known = best >= 0 && best < p.heads;
        for (int channel = thread_index(); channel < p.dim; channel += EPILOGUE_THREADS) {
            float value = p.projected.load(p.projected.at(b, 0, n, channel));
            if (p.tile || channel / p.width == best || !known) {
                const float added = known ? p.output.load(p.output.at(b, best, n, channel % p.width)) : UNKNOWN;
                value += p.projected.rounded(added);  // as in the reference
            }
            p.result.store(p.result.at(b, 0, n, channel), value);
        }
    }
};

struct BestHeadGradientParameters {
    Numbers gradient, best_gradient;  // (b, n, channel), (b, n, e)
    const int64_t* best_head;
    int length, dim, width;
    bool tile;
};

struct BestHeadGradient {
    using Parameters = BestHeadGradientParameters;
    static constexpr int BLOCK_THREADS = EPILOGUE_THREADS;
    static constexpr int BLOCKS_RESIDENT = 1;

    template <class>
    RSATTN_INLINE static void run(const Parameters& p) {
        const int b = block_index() / p.length, n = block_index() % p.length;
        const int64_t best = p.tile ? 0 : p.best_head[b];
        const bool known = best >= 0 && best < p.dim / p.width;
        const int first = known ? int(best) * p.width : p.dim, last = p.tile || !known ? p.dim : first + p.width;
        for (int e = thread_index(); e < p.width; e += EPILOGUE_THREADS) {
            float sum = known ? 0.0f : UNKNOWN;
            for (int channel = first + e; channel < last; channel += p.width)
                sum += p.gradient.load(p.gradient.at(b, 0, n, channel));
            p.best_gradient.store(p.best_gradient.at(b, 0, n, e), sum);
        }
    }
};

}  // namespace rsattn::cuda
