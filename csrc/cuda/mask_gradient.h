// The gradient of a float mask, for any number of queries and keys: dS = P (dP - delta), summed over the samples that
// share an entry of the mask, and over the heads if they share it too. Equations: kernels/README.md.
//
// A block owns 64 queries and 64 keys of one entry. It walks over the heads that use this entry, in order, adds their
// dS in registers and stores the sum once. If the mask has one row for all queries, a block owns 64 keys, walks over all
// tiles of queries of these heads, and adds up its rows at the end. The walk may be divided into slices: each has a
// block and a result of its own, and the caller adds these results. The scores and dP of a step are products of tiles of
// Q, K, G (the gradient of O) and V; delta is a product of the rows of G and O.
#pragma once
#include "scores.h"
#include "sm90.h"

namespace rsattn::cuda {

struct MaskGradientParameters {
    Operand query, key, value, output;
    Operand gradient;       // of output
    Operand best_gradient;  // (b, any head, n, e), added to the best head's gradient; data == nullptr: none
    Mask mask;
    Dropout dropout;
    const float* statistics;
    const int64_t* best_head;
    float* result;  // (slices, repeat, mask_heads, 1 or queries, keys)
    float scale;    // of scores to log2 units
    int heads, queries, keys, width;
    int mask_heads;              // 1: all heads share the mask
    int row_blocks, tiles_each;  // blocks for all queries; tiles of queries that each walks over; one of them is 1
    int key_blocks;
    int steps, steps_each;  // of the walk over the tiles of all heads that use an entry; of a slice
    bool one_row;           // the result has one row for all queries
};

// Shared memory: the tiles of two steps, of which the second arrive while the first are in use; or the wider tiles of
// one. Both take 80 KiB, so that two blocks fit on a multiprocessor of sm_80 and of sm_90. At the end, each warp's sums
// over its rows.
template <int WIDTH>
struct MaskGradientLayout {
    static constexpr int TILE = ROWS * WIDTH * 2;
    static constexpr int QUERY = 0, KEY = TILE, VALUE = 2 * TILE, OUTPUT = 3 * TILE, GRADIENT = 4 * TILE;
    static constexpr int STEPS = 2 * PANEL / WIDTH;
    static constexpr int BYTES = STEPS * 5 * TILE;
    static RSATTN_LAYOUT int step(int t) { return t % STEPS * 5 * TILE; }
};

template <class Element, int WIDTH, bool DROPS>
struct MaskGradient {
    using Parameters = MaskGradientParameters;
    using Layout = MaskGradientLayout<WIDTH>;
    static constexpr int BLOCK_THREADS = GROUP;
    static constexpr int BLOCKS_RESIDENT = 2;

    template <class Stream>
    RSATTN_INLINE static void run(const Parameters& p) {
        using Products = typename Stream::Products;
        char* const memory = shared_memory();
        const int first_key = block_index() % p.key_blocks * COLUMNS;
        const int row_block = block_index() / p.key_blocks % p.row_blocks;
        const int entry = block_index() / p.key_blocks / p.row_blocks;  // of slices, repeat and mask_heads together
        const int first_b = entry / p.mask_heads % p.mask.repeat, first_h = entry % p.mask_heads;
        const int begin = entry / p.mask_heads / p.mask.repeat * p.steps_each;
        const int end = begin + p.steps_each < p.steps ? begin + p.steps_each : p.steps;
        // A step is a tile of queries of a head: one or all heads of every sample that uses this entry.
        const int heads_each = p.mask_heads == 1 ? p.heads : 1;
        const auto sample = [&](int t) { return first_b + t / p.tiles_each / heads_each * p.mask.repeat; };
        const auto head = [&](int t) { return first_h + t / p.tiles_each % heads_each; };
        const auto first_row = [&](int t) { return (row_block + t % p.tiles_each) * ROWS; };
        const auto request = [&](int t) {
            load_step(p, memory + Layout::step(t), sample(t), head(t), first_row(t), first_key);
        };
        // The same for all steps, because a block with several tiles has a mask of one row.
        float terms[COLUMNS / 8][4];
        read_mask(p, terms, first_b, first_h, row_block * ROWS + fragment_row(), first_key);
        float sums[COLUMNS / 8][4];
        set_zero(sums);
        if (begin < end) request(begin);
        for (int t = begin; t < end; ++t) {
            const int b = sample(t), h = head(t), row = first_row(t) + fragment_row();
            const char* const tiles = memory + Layout::step(t);
            // A row beyond the last has the statistics of one that sees no key, so that P is 0.
            float largest[2] = {0.0f, 0.0f}, log2_sum[2] = {-MINUS_INFINITY, -MINUS_INFINITY}, delta[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (row + 8 * r >= p.queries) continue;
                const float* const statistics = p.statistics + (int64_t(b) * p.heads + h) * 2 * p.queries + row + 8 * r;
                largest[r] = statistics[0];
                log2_sum[r] = statistics[p.queries];
            }
            copy_wait<0>();
            Products::publish();
            if (Layout::STEPS == 2 && t + 1 < end) request(t + 1);
            // One bit for each element, drawn while few other registers are in use.
            uint32_t kept = 0xFFFFFFFFu;
            if (DROPS) {
#pragma unroll 1
                for (int n = 0; n < COLUMNS / 8; ++n) {
                    bool keep[4];
                    draw_rows(keep, p.dropout, *p.dropout.seed, b, h, row, first_key + 8 * n);
#pragma unroll
                    for (int i = 0; i < 4; ++i) kept ^= uint32_t(!keep[i]) << (4 * n + i);
                }
            }
            own_deltas(delta, tiles);
            float probs[COLUMNS / 8][4], dp[COLUMNS / 8][4];
            Products::score(probs, tiles + Layout::QUERY, tiles + Layout::KEY, p.width);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float score = multiply_rounded(probs[n][i], p.scale) + terms[n][i];
                    probs[n][i] = exp2_approximate(score - largest[i / 2] - log2_sum[i / 2]);
                }
            Products::score(dp, tiles + Layout::GRADIENT, tiles + Layout::VALUE, p.width);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (DROPS) dp[n][i] = kept >> (4 * n + i) & 1 ? dp[n][i] * p.dropout.scale : 0.0f;
                    sums[n][i] += probs[n][i] * (dp[n][i] - delta[i / 2]);
                }
            if (Layout::STEPS == 1 && t + 1 < end) {
                sync_block();
                request(t + 1);
            }
        }
        sync_block();  // what follows may overwrite any tile
        float* const result = p.result + int64_t(entry) * (p.one_row ? 1 : p.queries) * p.keys + first_key;
        const int keys = p.keys - first_key;  // from this block's first on
        if (p.one_row)
            store_row_sums(sums, memory, result, keys);
        else
            store_rows(p, sums, result, row_block * ROWS + fragment_row(), keys);
    }

    // What the mask adds to this lane's scores of every head, in log2 units.
    RSATTN_INLINE static void read_mask(const Parameters& p, float (&terms)[COLUMNS / 8][4], int b, int h,
                                        int row, int first_key) {
        const int64_t masked = p.mask.at(b, h, row, first_key + fragment_column());
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + 8 * n + fragment_column() + i % 2;
                terms[n][i] = row + i / 2 * 8 < p.queries && key < p.keys
                                  ? p.mask.term(p.mask.from(masked, i / 2 * 8, 8 * n + i % 2))
                                  : 0.0f;
            }
    }

    RSATTN_INLINE static void load_step(const Parameters& p, char* tiles, int b, int h, int first_row, int first_key) {
        load_tile<WIDTH>(tiles + Layout::QUERY, p.query, b, h, first_row, p.queries, p.width, GROUP);
        load_tile<WIDTH>(tiles + Layout::KEY, p.key, b, h, first_key, p.keys, p.width, GROUP);
        load_tile<WIDTH>(tiles + Layout::VALUE, p.value, b, h, first_key, p.keys, p.width, GROUP);
        load_tile<WIDTH>(tiles + Layout::OUTPUT, p.output, b, h, first_row, p.queries, p.width, GROUP);
        if (p.best_gradient.data != nullptr && p.best_head[b] == h)
            load_sum<Element, WIDTH>(tiles + Layout::GRADIENT, p.gradient, p.best_gradient, b, h, first_row, p.queries,
                                     p.width, GROUP);
        else
            load_tile<WIDTH>(tiles + Layout::GRADIENT, p.gradient, b, h, first_row, p.queries, p.width, GROUP);
        copy_commit();
    }

    // delta of this lane's rows. The four lanes that share them read every fourth piece each.
    RSATTN_INLINE static void own_deltas(float (&delta)[2], const char* tiles) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            delta[r] = 0.0f;
#pragma unroll
            for (int column = thread_index() % 4 * PIECE; column < WIDTH; column += 4 * PIECE) {
                const int offset = offset_of(fragment_row() + 8 * r, column);
                const Piece g = *reinterpret_cast<const Piece*>(tiles + Layout::GRADIENT + offset);
                const Piece o = *reinterpret_cast<const Piece*>(tiles + Layout::OUTPUT + offset);
#pragma unroll
                for (int e = 0; e < PIECE; ++e)
                    delta[r] += to_float<Element>(g.number[e]) * to_float<Element>(o.number[e]);
            }
            delta[r] += shuffle_xor(delta[r], 1);
            delta[r] += shuffle_xor(delta[r], 2);
        }
    }

    RSATTN_INLINE static void store_rows(const Parameters& p, const float (&sums)[COLUMNS / 8][4], float* result,
                                         int row, int keys) {
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = 8 * n + fragment_column() + i % 2;
                if (row + i / 2 * 8 < p.queries && column < keys)
                    result[int64_t(row + i / 2 * 8) * p.keys + column] = sums[n][i];
            }
    }

    // The sums over all rows: of each warp, by exchange between lanes, then over warps.
    RSATTN_INLINE static void store_row_sums(const float (&sums)[COLUMNS / 8][4], char* memory, float* result,
                                             int keys) {
        float* const of_warps = reinterpret_cast<float*>(memory);
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float sum = sums[n][c] + sums[n][c + 2];
#pragma unroll
                for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
                if (thread_index() % 32 < 4)
                    of_warps[thread_index() / 32 * COLUMNS + 8 * n + fragment_column() + c] = sum;
            }
        sync_block();
        const int column = thread_index();
        if (column >= COLUMNS || column >= keys) return;
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < GROUP / 32; ++warp) sum += of_warps[warp * COLUMNS + column];
        result[column] = sum;
    }
};

}  // namespace rsattn::cuda
