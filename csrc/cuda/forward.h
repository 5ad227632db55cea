// Forward: softmax attention of some query rows of a head, 64 for each warpgroup, and their terms of the head's norm
// and of the attention its keys receive, in one pass over keys.
//
// The induced norm and the attention received need column sums of finished probabilities, but a row's maximum and sum
// are known only at the end. So each tile's exp2(score - row maximum so far), a number up to 1, is also stored in
// shared memory as float16 for any type of inputs (with an error of up to 2^-11 of its value; bfloat16's would be
// 2^-8). At the end every row of every tile gets its weight, exp2(maximum then - maximum now) / sum, and the columns
// are summed with these weights. If the tiles do not fit, column_sums.h recomputes the scores instead.
#pragma once
#include "scores.h"
#include "select.h"
#include "sm90.h"

namespace rsattn::cuda {

struct ForwardParameters {
    Inputs inputs;  // queries are held, keys streamed
    Mask mask;
    Dropout dropout;
    Operand output;  // data == nullptr: only the attention received is computed, and there are no values
    Ranking ranking;
    float* statistics;  // or nullptr
    float scale, factor;  // of scores to log2 units: applied at once, and in the exponent
    int heads, queries, keys, width;
    int row_blocks;
    bool keeps_tiles;  // for column sums
    bool finishes;     // whether this pass finishes column sums or norms
};

// Shared memory besides the tiles, in order: barriers; a float for each thread, which first holds a statistic of each
// row; the last maximum and the weight of each row; and if tiles are kept, the (tiles, rows) maxima, and the rows' 16
// bytes for every eight keys.
template <int WIDTH>
struct ForwardLayout {
    int rows, keys;

    static RSATTN_LAYOUT ForwardLayout of(int groups, int keys) { return {groups * ROWS, keys}; }
    RSATTN_LAYOUT int tiles() const { return (keys + COLUMNS - 1) / COLUMNS; }
    RSATTN_LAYOUT int barriers() const { return Tiles<WIDTH>::bytes(rows / ROWS); }
    RSATTN_LAYOUT int scratch() const { return barriers() + 128; }
    RSATTN_LAYOUT int final_top() const { return scratch() + rows / ROWS * GROUP * 4; }
    RSATTN_LAYOUT int final_weight() const { return final_top() + rows * 4; }
    RSATTN_LAYOUT int maxima() const { return final_weight() + rows * 4; }
    RSATTN_LAYOUT int kept() const { return maxima() + tiles() * rows * 4; }
    RSATTN_LAYOUT int bytes(bool keeps_tiles) const {
        return keeps_tiles ? kept() + (keys + 7) / 8 * rows * 16 : maxima();
    }
};

template <class Element, int WIDTH, bool EXTRAS>
struct Forward {
    using Parameters = ForwardParameters;
    using Layout = ForwardLayout<WIDTH>;
    static constexpr int BLOCK_THREADS = MOST_GROUPS * GROUP;
    static constexpr int BLOCKS_RESIDENT = 1;

    template <class Stream>
    RSATTN_INLINE static void run(const Parameters& p) {
        char* memory = shared_memory();
        const int head = block_index() / p.row_blocks, block = block_index() % p.row_blocks;
        const Layout layout = Layout::of(p.inputs.groups, p.keys);
        const int b = head / p.heads, h = head % p.heads, first = block * layout.rows;
        const int lane = thread_index() % 32;
        // This lane's rows, counted in the block and in the head.
        const int own_row = thread_index() / GROUP * ROWS + fragment_row(), own[2] = {own_row, own_row + 8};
        const int row[2] = {first + own[0], first + own[1]};
        const int tiles = layout.tiles();
        float* maxima = reinterpret_cast<float*>(memory + layout.maxima());
        char* kept_tiles = memory + layout.kept();
        uint64_t seed = 0;
        if (EXTRAS && p.dropout.on) seed = *p.dropout.seed;
        const bool alone = p.output.data == nullptr;

        Stream stream(p.inputs, memory, memory + layout.barriers(), b, h, first);
        stream.request_first();
        float out[WIDTH / 8][4];
        set_zero(out);
        // The largest scores, before that factor. Until the end, sums cover only this lane's part of a row.
        float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f}, alive[2] = {0.0f, 0.0f};

        for (int t = 0; t < tiles; ++t) {
            const int first_key = t * COLUMNS;
            stream.wait_streamed(t);
            if (!alone) stream.request_values(t);
            stream.request_streamed(t + 1);
            float scores[COLUMNS / 8][4];
            stream.score(scores, t);
            if (EXTRAS) {
                const int64_t masked = p.mask.at(b, h, row[0], first_key + fragment_column());
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int key = first_key + 8 * n + fragment_column() + i % 2;
                        scores[n][i] *= p.scale;
                        if (row[i / 2] < p.queries && key < p.keys)
                            scores[n][i] = p.mask.apply(scores[n][i], p.mask.from(masked, i / 2 * 8, 8 * n + i % 2));
                    }
            }
            if (first_key + COLUMNS > p.keys) {
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (first_key + 8 * n + fragment_column() + i % 2 >= p.keys) scores[n][i] = MINUS_INFINITY;
            }
            float shrink[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float most = top[r];
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n)
                    most = fmaxf(most, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
                most = fmaxf(most, shuffle_xor(most, 1));
                most = fmaxf(most, shuffle_xor(most, 2));
                const float origin = origin_of(most);
                shrink[r] = exp2_approximate((top[r] - origin) * p.factor);
                top[r] = most;
                if (p.keeps_tiles && lane % 4 == 0) maxima[t * layout.rows + own[r]] = origin;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                    for (int i = 2 * r; i < 2 * r + 2; ++i) {
                        scores[n][i] = exp2_approximate((scores[n][i] - origin) * p.factor);
                        sum += scores[n][i];
                    }
                total[r] = total[r] * shrink[r] + sum;
                if (EXTRAS) alive[r] *= shrink[r];
            }
            if (p.keeps_tiles) {
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n)
                    if (first_key + 8 * n < p.keys) {
                        char* eight = kept_tiles + (t * (COLUMNS / 8) + n) * (layout.rows * 16) + lane % 4 * 4;
#pragma unroll
                        for (int r = 0; r < 2; ++r)
                            *reinterpret_cast<uint32_t*>(eight + own[r] * 16) =
                                pack<float16>(scores[n][2 * r], scores[n][2 * r + 1]);
                    }
            }
            if (alone) continue;
            if (EXTRAS && p.dropout.on) {
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; ++n) {
                    bool keep[4];
                    draw_rows(keep, p.dropout, seed, b, h, row[0], first_key + 8 * n);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        scores[n][i] = keep[i] ? scores[n][i] : 0.0f;
                        alive[i / 2] += scores[n][i];
                    }
                }
            }
            uint32_t probs[COLUMNS / 16][4];
            as_factor<Element>(probs, scores);
#pragma unroll
            for (int n = 0; n < WIDTH / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
            stream.wait_values(t);
            stream.weigh(out, probs);
        }
        finish(p, memory, layout, b, h, head, block, own, row, out, top, total, alive);
    }

    // The origin of the exponentials; 0 until a row sees a key.
    RSATTN_INLINE static float origin_of(float top) { return top == MINUS_INFINITY ? 0.0f : top; }

    RSATTN_INLINE static float row_sum(float own) {
        own += shuffle_xor(own, 1);
        return own + shuffle_xor(own, 2);
    }

    RSATTN_INLINE static void finish(const Parameters& p, char* memory, const Layout& layout, int b, int h, int head,
                                     int block, const int (&own)[2], const int (&row)[2],
                                     const float (&out)[WIDTH / 8][4], const float (&top)[2], const float (&total)[2],
                                     const float (&alive)[2]) {
        float* final_top = reinterpret_cast<float*>(memory + layout.final_top());
        float* final_weight = reinterpret_cast<float*>(memory + layout.final_weight());
        float* scratch = reinterpret_cast<float*>(memory + layout.scratch());
        const int lane = thread_index() % 32;
        const float keep_scale = EXTRAS ? p.dropout.scale : 1.0f;  // 1 without dropout
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float sum = row_sum(total[r]), kept = EXTRAS ? row_sum(alive[r]) : 0.0f;
            // The mask hides all keys. Without a mask, scores that are all -inf come from infinite inputs and give NaN.
            const bool blind = EXTRAS && p.mask.data != nullptr && sum == 0.0f, exists = row[r] < p.queries;
            const float weight = blind ? 0.0f : sum == 0.0f ? __builtin_nanf("") : 1.0f / sum, origin = origin_of(top[r]);
            if (exists && p.output.data != nullptr)
                store_row<Element>(p.output.head(b, h) + row[r] * p.output.stride[2], out, r, p.width,
                                   weight * keep_scale);
            if (lane % 4 == 0) {
                if (exists && p.statistics != nullptr) {
                    float* const own_statistics = p.statistics + int64_t(head) * 2 * p.queries + row[r];
                    own_statistics[0] = blind ? 0.0f : origin;
                    own_statistics[p.queries] = blind ? -MINUS_INFINITY : log2f(sum);
                }
                final_top[own[r]] = origin;
                float statistic = weight;  // also the row's largest probability, because its largest exponential is 1
                if (p.ranking.norm == Norm::entrywise)
                    statistic = EXTRAS && p.dropout.on ? kept * weight * keep_scale : (blind ? 0.0f : 1.0f);
                final_weight[own[r]] = exists ? weight : 0.0f;
                scratch[own[r]] = exists ? statistic : 0.0f;
            }
        }
        if (!p.finishes) return;
        sync_block();
        if (p.ranking.norm != Norm::induced)
            sum_rows(scratch, p.ranking.terms + int64_t(head) * p.ranking.count + block * p.inputs.groups);
        if (p.keeps_tiles)
            sum_columns(p, memory, layout, final_top, final_weight,
                        p.ranking.columns + (int64_t(head) * p.row_blocks + block) * p.keys);
        select_best_head(p.ranking, b, h, scratch, p.inputs.groups * GROUP);
    }

    // The sum over the rows of each warpgroup, by one of its warps.
    RSATTN_INLINE static void sum_rows(const float* statistic, float* sums) {
        if (thread_index() % GROUP >= 32) return;
        const int group = thread_index() / GROUP, lane = thread_index() % 32;
        float sum = statistic[group * ROWS + lane] + statistic[group * ROWS + lane + 32];
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane == 0) sums[group] = sum;
    }

    // A warp sums eight columns at a time. Each lane sums every 32nd row; then lanes exchange halves of their columns
    // until each has one.
    RSATTN_INLINE static void sum_columns(const Parameters& p, char* memory, const Layout& layout,
                                          const float* final_top, const float* final_weight, float* partial) {
        float* weight = reinterpret_cast<float*>(memory + layout.maxima());
        const char* kept_tiles = memory + layout.kept();
        const int threads = p.inputs.groups * GROUP;
        for (int i = thread_index(); i < layout.tiles() * layout.rows; i += threads) {
            // Positive only if no key had been seen; then the stored values are zeros.
            const float risen = fminf(weight[i] - final_top[i % layout.rows], 0.0f);
            weight[i] = exp2_approximate(risen * p.factor) * final_weight[i % layout.rows];
        }
        sync_block();
        const int lane = thread_index() % 32;
        for (int eight = thread_index() / 32; eight < (p.keys + 7) / 8; eight += threads / 32) {
            float sums[8] = {};
#pragma unroll 2
            for (int row = lane; row < layout.rows; row += 32) {
                const Piece kept = *reinterpret_cast<const Piece*>(kept_tiles + (eight * layout.rows + row) * 16);
                const float by = weight[eight / (COLUMNS / 8) * layout.rows + row];
#pragma unroll
                for (int c = 0; c < 8; ++c) sums[c] += to_float<float16>(kept.number[c]) * by;
            }
#pragma unroll
            for (int width = 4; width > 0; width /= 2) {
                const int mask = 4 * width;
                const bool upper = lane & mask;
#pragma unroll
                for (int c = 0; c < width; ++c) {
                    const float given = shuffle_xor(upper ? sums[c] : sums[c + width], mask);
                    sums[c] = (upper ? sums[c + width] : sums[c]) + given;
                }
            }
            sums[0] += shuffle_xor(sums[0], 1);
            sums[0] += shuffle_xor(sums[0], 2);
            // Bits 4, 3, 2 of the lane chose columns 4, 2, 1 apart.
            const int column = 8 * eight + lane / 4;
            if (lane % 4 == 0 && column < p.keys) partial[column] = sums[0];
        }
    }
};

}  // namespace rsattn::cuda
