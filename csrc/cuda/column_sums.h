// Column sums of P, the attention received, for more keys than fit in shared memory: a second pass. A warpgroup holds
// 64 keys. The transposed scores of one tile of queries after another are recomputed, from finished statistics. For
// the induced norm a block also stores its largest sum.
#pragma once
#include "scores.h"
#include "select.h"
#include "sm90.h"

namespace rsattn::cuda {

struct ColumnSumsParameters {
    Inputs inputs;  // keys are held, queries streamed
    Mask mask;
    Ranking ranking;  // norms == nullptr: the norm is not the induced one, or there is none
    const float* statistics;
    float scale, factor;  // as in the forward pass
    int heads, queries, keys;
    int key_blocks;
};

// Shared memory: the tiles, barriers, a float for each thread.
template <int WIDTH>
struct ColumnSumsLayout {
    static RSATTN_LAYOUT int barriers(int groups) { return Tiles<WIDTH>::bytes(groups); }
    static RSATTN_LAYOUT int scratch(int groups) { return barriers(groups) + 128; }
    static RSATTN_LAYOUT int bytes(int groups) { return scratch(groups) + groups * GROUP * 4; }
};

template <class Element, int WIDTH, bool EXTRAS>
struct ColumnSums {
    using Parameters = ColumnSumsParameters;
    using Layout = ColumnSumsLayout<WIDTH>;
    static constexpr int BLOCK_THREADS = MOST_GROUPS * GROUP;
    static constexpr int BLOCKS_RESIDENT = 2;

    template <class Stream>
    RSATTN_INLINE static void run(const Parameters& p) {
        char* memory = shared_memory();
        const int threads = p.inputs.groups * GROUP;
        float* scratch = reinterpret_cast<float*>(memory + Layout::scratch(p.inputs.groups));
        const int head = block_index() / p.key_blocks, block = block_index() % p.key_blocks;
        const int b = head / p.heads, h = head % p.heads, first = block * p.inputs.groups * ROWS;
        const int own_key = first + thread_index() / GROUP * ROWS + fragment_row();
        const int key[2] = {own_key, own_key + 8};
        Stream stream(p.inputs, memory, memory + Layout::barriers(p.inputs.groups), b, h, first);
        stream.request_first();
        float sums[2] = {0.0f, 0.0f};
        for (int t = 0; t * COLUMNS < p.queries; ++t) {
            stream.wait_streamed(t);
            stream.request_streamed(t + 1);
            float scores[COLUMNS / 8][4];
            stream.score(scores, t);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const int query = t * COLUMNS + 8 * n + fragment_column() + c;
                    if (query >= p.queries) continue;
                    const float* const statistics = p.statistics + int64_t(head) * 2 * p.queries + query;
                    const float largest = statistics[0], log2_sum = statistics[p.queries];
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        float score = EXTRAS ? scores[n][2 * r + c] * p.scale : scores[n][2 * r + c];
                        if (EXTRAS && key[r] < p.keys) score = p.mask.apply(score, p.mask.at(b, h, query, key[r]));
                        sums[r] += exp2_approximate(fmaf(score - largest, p.factor, -log2_sum));
                    }
                }
        }
        float most = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sums[r] += shuffle_xor(sums[r], 1);
            sums[r] += shuffle_xor(sums[r], 2);
            if (key[r] >= p.keys) continue;
            most = larger(sums[r], most);
            if (p.ranking.received != nullptr && thread_index() % 4 == 0)
                p.ranking.received[int64_t(head) * p.keys + key[r]] = sums[r];
        }
        if (p.ranking.norms == nullptr) return;
        most = reduce_block(most, true, scratch, threads);
        if (thread_index() == 0) p.ranking.terms[int64_t(head) * p.key_blocks + block] = most;
        select_best_head(p.ranking, b, h, scratch, threads);
    }
};

}  // namespace rsattn::cuda
