// Backward of one head whose queries, keys, values and gradient fit on chip: one block computes dQ, dK and dV.
//
// A warpgroup owns 64 keys and accumulates their dK and dV in its registers. For each tile of 64 queries it recomputes
// the transposed scores of its keys from the row statistics, some queries at a time, and writes dS to shared memory.
// The warpgroups then take turns in multiplying the tile's dS of all keys by K, which gives dQ. Every result has one
// writer and a fixed order of its terms. Equations: kernels/README.md.
#pragma once
#include "scores.h"
#include "sm90.h"

namespace rsattn::cuda {

struct BackwardParameters {
    Operand query, key, value, output;
    Operand gradient;       // of output
    Operand best_gradient;  // (b, any head, n, e), added to the best head's gradient; data == nullptr: none
    Operand query_gradient, key_gradient, value_gradient;
    Mask mask;
    Dropout dropout;
    const float* statistics;
    const int64_t* best_head;
    float scale, before, factor;  // of scores; to log2 units, applied at once, and in the exponent
    int heads, queries, keys, width;
    bool two_gradients;  // whether dS of two tiles fits
};

// Shared memory, in order: three floats for each query; for every 64 keys a tile of K and one of V; for every 64
// queries a tile of Q and one of G; dS, whose memory first holds tiles of O. Few values give all addresses, so few
// registers do.
template <int WIDTH>
struct BackwardLayout {
    static constexpr int TILE = ROWS * WIDTH * 2;
    static constexpr int SCORES = ROWS * ROW_BYTES;  // dS of 64 keys x 64 queries
    static constexpr int MOST_GROUPS = WIDTH == PANEL ? 4 : 2;
    static constexpr int MOST = MOST_GROUPS * ROWS;  // queries, and keys
    static constexpr int LARGEST = 0, SUMS = MOST * 4, DELTAS = 2 * MOST * 4;
    static constexpr int KEYS = (3 * MOST * 4 + 1023) / 1024 * 1024;  // the first address where a tile may begin

    static RSATTN_LAYOUT int tiles(int count) { return (count + ROWS - 1) / ROWS; }
    static RSATTN_LAYOUT int key(int group) { return KEYS + group * 2 * TILE; }
    static RSATTN_LAYOUT int value(int group) { return key(group) + TILE; }
    static RSATTN_LAYOUT int query(int groups, int tile) { return key(groups) + tile * 2 * TILE; }
    static RSATTN_LAYOUT int gradient(int groups, int tile) { return query(groups, tile) + TILE; }
    static RSATTN_LAYOUT int scores(int groups, int tiles) { return query(groups, tiles); }
    static RSATTN_LAYOUT int output(int groups, int tiles, int tile) { return scores(groups, tiles) + tile * TILE; }
    static RSATTN_LAYOUT int bytes(int queries, int keys, bool two_gradients) {
        const int gradients = (two_gradients ? 2 : 1) * tiles(keys) * SCORES, outputs = tiles(queries) * TILE;
        return scores(tiles(keys), tiles(queries)) + (gradients > outputs ? gradients : outputs);
    }
};

template <class Element, int WIDTH, bool EXTRAS>
struct Backward {
    using Parameters = BackwardParameters;
    using Layout = BackwardLayout<WIDTH>;
    static constexpr int BLOCK_THREADS = GROUP * Layout::MOST_GROUPS;  // at most; one warpgroup for every 64 keys
    static constexpr int BLOCKS_RESIDENT = 1;

    template <class Stream>
    RSATTN_INLINE static void run(const Parameters& p) {
        using Products = typename Stream::Products;
        // The queries whose scores a warpgroup computes at a time: as many as fit in registers.
        constexpr int SLICE = EXTRAS ? 16 : Products::ROWS_AT_ONCE;
        const int head = block_index(), b = head / p.heads, h = head % p.heads;
        const int groups = Layout::tiles(p.keys), tiles = Layout::tiles(p.queries), group = thread_index() / GROUP;
        char* const memory = shared_memory();
        const float* const largest = reinterpret_cast<const float*>(memory + Layout::LARGEST);
        const float* const log2_sums = reinterpret_cast<const float*>(memory + Layout::SUMS);
        const float* const deltas = reinterpret_cast<const float*>(memory + Layout::DELTAS);

        load_head(p, b, h, groups, tiles, memory);
        copy_commit();
        copy_wait<0>();
        Products::publish();
        row_statistics(p, head, groups, tiles, memory);
        sync_block();

        const int own_key = group * ROWS + fragment_row();
        const int key[2] = {own_key, own_key + 8};
        const float keep_scale = EXTRAS ? p.dropout.scale : 1.0f;  // 1 without dropout
        float dk[WIDTH / 8][4], dv[WIDTH / 8][4];
        set_zero(dk);
        set_zero(dv);
        for (int t = 0; t < tiles; ++t) {
            char* ds = memory + Layout::scores(groups, tiles) + (p.two_gradients ? t % 2 : 0) * groups * Layout::SCORES;
            if (!p.two_gradients) sync_block();
#pragma unroll 1
            for (int first = 0; first < ROWS; first += SLICE) {
                const char* some_queries = rows_from(memory + Layout::query(groups, t), first);
                const char* some_gradients = some_queries + Layout::TILE;
                const int row = t * ROWS + first + fragment_column();
                float probs[SLICE / 8][4], dp[SLICE / 8][4];
                uint32_t factor[SLICE / 16][4];
                // One bit for each element, drawn while few other registers are in use.
                uint32_t kept = 0xFFFFFFFFu;
                if (EXTRAS && p.dropout.on) {
#pragma unroll 1
                    for (int n = 0; n < SLICE / 8; ++n)
                        kept ^= dropped_columns(p.dropout, *p.dropout.seed, b, h, row + 8 * n, own_key) << 4 * n;
                }
                Products::score(probs, memory + Layout::key(group), some_queries, p.width);
                const int64_t masked = EXTRAS ? p.mask.at(b, h, row, own_key) : 0;
#pragma unroll
                for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int query = row + 8 * n + i % 2;
                        float score = EXTRAS ? probs[n][i] * p.before : probs[n][i];
                        if (EXTRAS && query < p.queries && key[i / 2] < p.keys)
                            score = p.mask.apply(score, p.mask.from(masked, 8 * n + i % 2, i / 2 * 8));
                        score = fmaf(score - largest[query], p.factor, -log2_sums[query]);
                        probs[n][i] = key[i / 2] < p.keys ? exp2_approximate(score) : 0.0f;
                    }
#pragma unroll
                for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) dp[n][i] = kept >> (4 * n + i) & 1 ? probs[n][i] * keep_scale : 0.0f;
                as_factor<Element>(factor, dp);
                Products::weigh(dv, factor, some_gradients, p.width);
                Products::score(dp, memory + Layout::value(group), some_gradients, p.width);
#pragma unroll
                for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float upstream = kept >> (4 * n + i) & 1 ? dp[n][i] * keep_scale : 0.0f;
                        dp[n][i] = probs[n][i] * (upstream - deltas[row + 8 * n + i % 2]);
                    }
                as_factor<Element>(factor, dp);
#pragma unroll
                for (int n = 0; n < SLICE / 8; ++n)
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        *reinterpret_cast<uint32_t*>(
                            ds + group * Layout::SCORES +
                            offset_of(fragment_row() + 8 * r, first + 8 * n + fragment_column())) =
                            factor[n / 2][n % 2 * 2 + r];
                Products::weigh(dk, factor, some_queries, p.width);
            }
            sync_block();
            if (group == t % groups) query_gradient<Products>(p, b, h, t, groups, ds, memory);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (key[r] >= p.keys) continue;
            store_row<Element>(p.key_gradient.head(b, h) + key[r] * p.key_gradient.stride[2], dk, r, p.width, p.scale);
            store_row<Element>(p.value_gradient.head(b, h) + key[r] * p.value_gradient.stride[2], dv, r, p.width, 1.0f);
        }
    }

    // G, the gradient of O: the projection's and, for the best head, the residual's, rounded once.
    RSATTN_INLINE static void load_head(const Parameters& p, int b, int h, int groups, int tiles, char* memory) {
        const int threads = groups * GROUP;
        auto load = [&](int to, const Operand& from, int tile, int rows) {
            load_tile<WIDTH>(memory + to, from, b, h, tile * ROWS, rows, p.width, threads);
        };
        for (int t = 0; t < groups; ++t) {
            load(Layout::key(t), p.key, t, p.keys);
            load(Layout::value(t), p.value, t, p.keys);
        }
        const bool residual = p.best_gradient.data != nullptr && p.best_head[b] == h;
        for (int t = 0; t < tiles; ++t) {
            load(Layout::query(groups, t), p.query, t, p.queries);
            load(Layout::output(groups, tiles, t), p.output, t, p.queries);
            if (residual)
                load_sum<Element, WIDTH>(memory + Layout::gradient(groups, t), p.gradient, p.best_gradient, b, h,
                                         t * ROWS, p.queries, p.width, threads);
            else
                load(Layout::gradient(groups, t), p.gradient, t, p.queries);
        }
    }

    // For every query: its statistics, and delta, the product of G and O. Rows beyond the last query get the statistics
    // of a row that sees no key, so that P is 0.
    RSATTN_INLINE static void row_statistics(const Parameters& p, int64_t head, int groups, int tiles, char* memory) {
        constexpr int PIECES = WIDTH / PIECE;  // of a row; each belongs to a lane
        for (int at = thread_index(); at < tiles * ROWS * PIECES; at += groups * GROUP) {
            const int row = at / PIECES, piece = at % PIECES;
            const int offset = offset_of(row % ROWS, piece * PIECE);
            const Piece g = *reinterpret_cast<const Piece*>(memory + Layout::gradient(groups, row / ROWS) + offset);
            const Piece o =
                *reinterpret_cast<const Piece*>(memory + Layout::output(groups, tiles, row / ROWS) + offset);
            float delta = 0.0f;
#pragma unroll
            for (int e = 0; e < PIECE; ++e) delta += to_float<Element>(g.number[e]) * to_float<Element>(o.number[e]);
#pragma unroll
            for (int mask = 1; mask < PIECES; mask *= 2) delta += shuffle_xor(delta, mask);
            if (piece != 0) continue;
            const float* const statistics = p.statistics + head * 2 * p.queries + row;
            const bool exists = row < p.queries;
            reinterpret_cast<float*>(memory + Layout::LARGEST)[row] = exists ? statistics[0] : 0.0f;
            reinterpret_cast<float*>(memory + Layout::SUMS)[row] = exists ? statistics[p.queries] : -MINUS_INFINITY;
            reinterpret_cast<float*>(memory + Layout::DELTAS)[row] = delta;
        }
    }

    // dQ of tile t, computed by one warpgroup: dS (64 queries x all keys) K.
    template <class Products>
    RSATTN_INLINE static void query_gradient(const Parameters& p, int b, int h, int t, int groups, const char* ds,
                                             const char* memory) {
        const int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
#pragma unroll 1
        for (int column = 0; column < WIDTH; column += Products::COLUMNS_AT_ONCE) {
            if (column >= p.width) break;
            float dq[Products::COLUMNS_AT_ONCE / 8][4];
            set_zero(dq);
#pragma unroll 1
            for (int first = 0; first < groups * ROWS; first += 16) {
                // dS is stored as keys x queries: matrices 1 and 3 are eight queries further, 2 and 3 eight keys.
                const char* from = rows_from(ds + first / ROWS * Layout::SCORES, first % ROWS);
                uint32_t factor[1][4];
                load_matrices_transposed(
                    factor[0], piece_address(from, lane / 16 * 8 + lane % 8, 16 * warp + lane / 8 % 2 * 8));
                const char* some_keys = rows_from(memory + Layout::key(first / ROWS), first % ROWS);
                Products::weigh(dq, factor, some_keys, p.width, column);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = t * ROWS + fragment_row() + 8 * r;
                if (row < p.queries)
                    store_row<Element>(p.query_gradient.head(b, h) + row * p.query_gradient.stride[2] + column, dq, r,
                                       p.width - column, p.scale);
            }
        }
    }
};

}  // namespace rsattn::cuda
