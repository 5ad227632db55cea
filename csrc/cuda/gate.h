// The residual with a gate: gamma times the best head's output, for each channel, is added to the projection's. Also
// the gradients of the output and of gamma. E, D, strides and each tensor's type are arbitrary.
#pragma once
#include "epilogue.h"

namespace rsattn::cuda {

struct AddGatedHeadParameters {
    Numbers projected, output, gamma, result;
    const int64_t* best_head;
    int64_t heads;
    int length, dim, width;
    bool tile;  // otherwise slot
};

// A block for each token.
struct AddGatedHead {
    using Parameters = AddGatedHeadParameters;
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
                value += p.gamma.load(p.gamma.at(0, 0, 0, channel)) * added;
            }
            p.result.store(p.result.at(b, 0, n, channel), value);
        }
    }
};

struct GateGradientsParameters {
    Numbers gradient, output, gamma, best_gradient;  // (b, n, channel), (b, h, n, e), (channel), (b, n, e)
    const int64_t* best_head;
    int64_t heads;
    float* partials;  // (blocks of rows, channel)
    int rows, length, dim, width;
    bool tile;
};

// A block computes both results for 64 tokens and 32 of the E columns with all their repeats (with "slot": heads): the
// gradient of the output, and these tokens' terms of gamma's. A thread holds a column of eight tokens, one warp apart,
// and loads two repeats of it at a time.
struct GateGradients {
    using Parameters = GateGradientsParameters;
    static constexpr int COLUMNS = 32, WARPS = 8, EACH = 8, ROWS_TAKEN = WARPS * EACH, REPEATS = 2;
    static constexpr int BLOCK_THREADS = WARPS * 32;
    static constexpr int BLOCKS_RESIDENT = 2;  // otherwise the compiler uses registers for one
    // A warp's sums for each current repeat; two buffers, so that one barrier per iteration is enough.
    static constexpr int SHARED_BYTES = 2 * REPEATS * WARPS * COLUMNS * int(sizeof(float));

    RSATTN_LAYOUT static int chunks(int width) { return (width + COLUMNS - 1) / COLUMNS; }

    template <class>
    RSATTN_INLINE static void run(const Parameters& p) {
        const int lane = thread_index() % 32, warp = thread_index() / 32;
        const int block = block_index() / chunks(p.width), e = block_index() % chunks(p.width) * COLUMNS + lane;
        const int first_row = block * ROWS_TAKEN + warp, repeats = p.dim / p.width;
        const int64_t repeat_apart = p.width * p.gradient.stride[3];
        float* const sums = reinterpret_cast<float*>(shared_memory());

        int best[EACH];
        int64_t row_at[EACH], from[EACH];
        bool exists[EACH], known[EACH];
        float attended[EACH], total[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const int row = first_row + k * WARPS, b = row / p.length, n = row % p.length;
            exists[k] = row < p.rows && e < p.width;
            const int64_t head = exists[k] ? p.best_head[b] : 0;
            known[k] = exists[k] && head >= 0 && head < p.heads;
            best[k] = known[k] ? int(head) : -1;
            row_at[k] = p.gradient.at(b, 0, n, e);
            from[k] = p.output.at(b, best[k], n, e);
            total[k] = known[k] ? 0.0f : UNKNOWN;
        }
        p.output.load([&](int k) { return from[k]; }, known, attended);
#pragma unroll
        for (int k = 0; k < EACH; ++k)
            if (!known[k]) attended[k] = UNKNOWN;

        for (int first = 0, turn = 0; first < repeats; first += REPEATS, turn ^= 1) {
            float* const turned = sums + turn * REPEATS * WARPS * COLUMNS;
            bool receives[REPEATS * EACH];
            float gradient[REPEATS * EACH];
#pragma unroll
            for (int i = 0; i < REPEATS * EACH; ++i) {
                const int repeat = first + i / EACH, k = i % EACH;
                receives[i] = exists[k] & (repeat < repeats) & (p.tile | (repeat == best[k]) | !known[k]);
            }
            p.gradient.load([&](int i) { return row_at[i % EACH] + (first + i / EACH) * repeat_apart; }, receives,
                            gradient);
#pragma unroll
            for (int r = 0; r < REPEATS; ++r) {
                const bool has_gate = first + r < repeats && e < p.width;
                const int channel = (first + r) * p.width + e;
                const float gamma = has_gate ? p.gamma.load(p.gamma.at(0, 0, 0, channel)) : 0.0f;
                float sum = 0.0f;
#pragma unroll
                for (int k = 0; k < EACH; ++k) {
                    // A zero gradient is not enough: the other factor may be infinite or NaN.
                    if (!receives[r * EACH + k]) continue;
                    total[k] += gamma * gradient[r * EACH + k];
                    sum += attended[k] * gradient[r * EACH + k];
                }
                turned[(r * WARPS + warp) * COLUMNS + lane] = sum;
            }
            sync_block();
            if (warp < REPEATS && first + warp < repeats && e < p.width) {
                float sum = 0.0f;
                for (int w = 0; w < WARPS; ++w) sum += turned[(warp * WARPS + w) * COLUMNS + lane];
                p.partials[int64_t(block) * p.dim + (first + warp) * p.width + e] = sum;
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const int row = first_row + k * WARPS;
            if (exists[k]) p.best_gradient.store(p.best_gradient.at(row / p.length, 0, row % p.length, e), total[k]);
        }
    }
};

struct GammaGradientParameters {
    Numbers gamma_gradient;
    const float* partials;  // (blocks of rows, channel)
    int blocks, dim;
};

// The sum of the partials over the blocks of rows. A block sums 8 channels, and a thread every 64th partial of one. The
// order depends only on the shapes.
struct GammaGradient {
    using Parameters = GammaGradientParameters;
    static constexpr int CHANNELS = 8, WARPS = 16, APART = WARPS * 32 / CHANNELS;
    static constexpr int BLOCK_THREADS = WARPS * 32;
    static constexpr int BLOCKS_RESIDENT = 1;
    static constexpr int SHARED_BYTES = WARPS * CHANNELS * int(sizeof(float));

    RSATTN_LAYOUT static int chunks(int dim) { return (dim + CHANNELS - 1) / CHANNELS; }

    template <class>
    RSATTN_INLINE static void run(const Parameters& p) {
        const int own = thread_index() % CHANNELS, channel = block_index() * CHANNELS + own;
        float* const sums = reinterpret_cast<float*>(shared_memory());
        float sum = 0.0f;
        if (channel < p.dim)
            for (int block = thread_index() / CHANNELS; block < p.blocks; block += APART)
                sum += p.partials[int64_t(block) * p.dim + channel];
        for (int mask = CHANNELS; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
        if (thread_index() % 32 < CHANNELS) sums[thread_index() / 32 * CHANNELS + own] = sum;
        sync_block();
        if (thread_index() >= CHANNELS || channel >= p.dim) return;
        sum = 0.0f;
        for (int w = 0; w < WARPS; ++w) sum += sums[w * CHANNELS + own];
        p.gamma_gradient.store(p.gamma_gradient.at(0, 0, 0, channel), sum);
    }
};

}  // namespace rsattn::cuda
