// Column sums, norms and best head from partial results, computed by the last block to arrive of a head, of a sample
// and of the batch. Each partial result has one writer, and they are added in order, so the result does not depend on
// which block is last.
#pragma once
#include "../calls.h"
#include "sm80.h"

namespace rsattn::cuda {

struct Ranking {
    Norm norm;
    bool per_sample;
    int batch, heads, queries;
    int blocks;  // of a head
    int keys;    // whose column sums are added here; 0: none
    int count;   // other terms of a head's norm: largest column sums, or sums over rows
    float* columns;      // (B * H, blocks, keys): partial column sums
    float* terms;        // (B * H, count)
    int32_t* counters;   // (B * H + B + 1), zero
    float* received;     // (B, H, keys), finished column sums; or nullptr
    float* norms;        // (B, H); nullptr: only column sums are computed
    int64_t* best_head;  // (B,)
};

// The lowest index of the largest value. NaN is larger than any number, as in torch.argmax.
RSATTN_INLINE int first_largest(const float* values, int count) {
    int best = 0;
    for (int h = 1; h < count; ++h)
        if (values[h] > values[best] || (values[h] != values[h] && values[best] == values[best])) best = h;
    return best;
}

// NaN wins over any number.
RSATTN_INLINE float larger(float a, float b) { return a != a || a > b ? a : b; }

// The sum or the maximum of one value from each thread of a block, in thread 0. The number of threads is a power of
// two; `scratch` is a float of shared memory for each.
RSATTN_INLINE float reduce_block(float own, bool largest, float* scratch, int threads) {
    const int thread = thread_index();
    sync_block();
    scratch[thread] = own;
    sync_block();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (thread < half) {
            const float other = scratch[thread + half];
            scratch[thread] = largest ? larger(scratch[thread], other) : scratch[thread] + other;
        }
        sync_block();
    }
    return scratch[0];
}

// Whether this block is the last of `expected`. If so, it sees what the others wrote.
RSATTN_INLINE bool is_last(int32_t* counter, int expected, float* scratch) {
    sync_block();
    if (thread_index() == 0) scratch[0] = arrive(counter) == expected - 1 ? 1.0f : 0.0f;
    sync_block();
    return scratch[0] != 0.0f;
}

// Called by all threads of every block once its partials are stored; `scratch` as for `reduce_block`.
RSATTN_INLINE void select_best_head(const Ranking& ranking, int b, int h, float* scratch, int threads) {
    const int head = b * ranking.heads + h, thread = thread_index();
    const bool largest = ranking.norm == Norm::induced;
    if (!is_last(ranking.counters + head, ranking.blocks, scratch)) return;
    const float* columns = ranking.columns + int64_t(head) * ranking.blocks * ranking.keys;
    float norm = 0.0f;
    for (int j = thread; j < ranking.keys; j += threads) {
        float sum = 0.0f;
#pragma unroll 8
        for (int block = 0; block < ranking.blocks; ++block)
            sum += load_from_l2(columns + int64_t(block) * ranking.keys + j);
        if (ranking.received != nullptr) ranking.received[int64_t(head) * ranking.keys + j] = sum;
        if (largest) norm = larger(sum, norm);
    }
    if (ranking.norms == nullptr) return;
    // By as many threads as the smallest block has, so that the order of a sum does not depend on the block.
    for (int j = thread; thread < GROUP && j < ranking.count; j += GROUP) {
        const float term = load_from_l2(ranking.terms + int64_t(head) * ranking.count + j);
        norm = largest ? larger(term, norm) : norm + term;
    }
    norm = reduce_block(norm, largest, scratch, threads);
    if (thread == 0) ranking.norms[head] = ranking.norm == Norm::confidence ? norm / float(ranking.queries) : norm;

    if (!is_last(ranking.counters + ranking.batch * ranking.heads + b, ranking.heads, scratch)) return;
    if (!ranking.per_sample &&
        !is_last(ranking.counters + ranking.batch * ranking.heads + ranking.batch, ranking.batch, scratch))
        return;
    // If there are more heads than fit in scratch, they are ranked in groups; a later head wins only if it is larger.
    int best = 0;
    float best_norm = 0.0f;
    for (int begin = 0; begin < ranking.heads; begin += threads) {
        const int here = ranking.heads - begin < threads ? ranking.heads - begin : threads;
        sync_block();
        if (thread < here) {
            float sum = 0.0f;
            const int from = ranking.per_sample ? b : 0, to = ranking.per_sample ? b + 1 : ranking.batch;
            for (int sample = from; sample < to; ++sample)
                sum += load_from_l2(ranking.norms + sample * ranking.heads + begin + thread);
            scratch[thread] = sum;
        }
        sync_block();
        const int winner = first_largest(scratch, here);
        const float challenger = scratch[winner];
        if (begin == 0 || (larger(challenger, best_norm) != best_norm && best_norm == best_norm)) {
            best = begin + winner;
            best_norm = challenger;
        }
    }
    if (ranking.per_sample && thread == 0) ranking.best_head[b] = best;
    for (int sample = thread; !ranking.per_sample && sample < ranking.batch; sample += threads)
        ranking.best_head[sample] = best;
}

}  // namespace rsattn::cuda
