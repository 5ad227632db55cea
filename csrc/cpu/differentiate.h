// P and dS of a block of query rows and a block of keys of one head, from the row statistics of the forward pass: what
// all gradients begin with. Equations: kernels/README.md.
#pragma once
#include "pack.h"
#include "philox.h"
#include "softmax.h"

namespace rsattn {
namespace {

constexpr int64_t ROW_BLOCK = 96;
constexpr int64_t KEY_BLOCK = 64;
constexpr int64_t PANELS_PER_BLOCK = KEY_BLOCK / (TILE_VECTORS * LANES);
constexpr int64_t ROWS_AHEAD = 8;  // between asking for a row and reading it

// A block of query rows of one head.
struct RowBlock {
    int64_t b, h, first, rows;
};

// The keys [first, end) of one head: the panels [panel, last), which are `columns` wide with their padding.
struct KeyBlock {
    int64_t panel, last, first, columns, end;

    KeyBlock(const Panels& panels, int64_t panel, int64_t keys) : panel(panel) {
        const int64_t beyond = panel + PANELS_PER_BLOCK;
        last = beyond < panels.count ? beyond : panels.count;
        first = panels.start(panel) * LANES;
        columns = panels.start(last) * LANES - first;
        end = first + columns < keys ? first + columns : keys;
    }
};

template <class Dot>
struct BlockLayout {
    uint32_t *queries, *grads, *room;
    float *spare, *other;
    float *probs, *slopes;  // scores and dO V^T of a block, ROW_BLOCK x KEY_BLOCK
    float *keep, *mask;
    float largest[ROW_BLOCK], log2_sum[ROW_BLOCK], delta[ROW_BLOCK];

    void lay(Arena& arena, const Upstream& call) {
        const int64_t width = call.query.size[3], row = words_room<Dot>(width);
        queries = arena.take<uint32_t>(ROW_BLOCK * row);
        grads = arena.take<uint32_t>(ROW_BLOCK * row);
        room = arena.take<uint32_t>((LANES + 1) * row);
        spare = arena.take<float>(round_up(width, LANES));
        other = arena.take<float>(round_up(width, LANES));
        probs = arena.take<float>(ROW_BLOCK * KEY_BLOCK);
        slopes = arena.take<float>(ROW_BLOCK * KEY_BLOCK);
        keep = arena.take<float>(call.dropout.on ? Dot::DEPTH * KEY_BLOCK : 0);
        mask = arena.take<float>(call.mask.data ? KEY_BLOCK : 0);
    }
};

// Q and dO of a block of rows as words.
struct RowWords {
    Words queries, grads;
};

// Reads the rows of a block, with the residual's gradient in dO if this head is the best one; and their statistics and
// delta_i = dO_i . O_i.
template <class Dot>
RowWords read_rows(const Upstream& call, BlockLayout<Dot>& s, const RowBlock& at) {
    const int64_t width = call.query.size[3], row = words_room<Dot>(width);
    const bool best = call.grad_best.data && call.best_head[at.b] == at.h;
    for (int64_t r = 0; r < at.rows; ++r) {
        const int64_t i = at.first + r;
        if (r + ROWS_AHEAD < at.rows) {
            prefetch_row(call.grad_output, at.b, at.h, i + ROWS_AHEAD, 0, width);
            prefetch_row(call.output, at.b, at.h, i + ROWS_AHEAD, 0, width);
            prefetch_row(call.query, at.b, at.h, i + ROWS_AHEAD, 0, width);
        }
        read_row(s.spare, call.grad_output, at.b, at.h, i);
        if (best) {
            read_row(s.other, call.grad_best, at.b, 0, i);
            for (int64_t e = 0; e < width; ++e) s.spare[e] += s.other[e];
        }
        to_words<Dot>(s.grads + r * row, s.spare, width);
        read_row(s.other, call.output, at.b, at.h, i);
        Vec dot = {};
        for (int64_t e = 0; e < width; e += LANES) dot += load(s.spare + e) * load(s.other + e);
        s.delta[r] = sum(dot);
        const int64_t length = call.query.size[2];
        const float* statistics = call.statistics + (at.b * call.query.size[1] + at.h) * 2 * length + i;
        s.largest[r] = statistics[0];
        s.log2_sum[r] = statistics[length];
    }
    return {rows_as_words<Dot>(call.query, at.b, at.h, at.first, at.rows, call.scale, s.queries, s.spare),
            Words{s.grads, row, 1}};
}

// Prepares row r of a block's scores for the exponential: mask, padding and dropout. A row beyond the last, which
// exists if a word holds two rows, is zero in P and dS.
template <class Dot>
void prepare_row(const Upstream& call, BlockLayout<Dot>& s, MaskRow& mask, const RowBlock& at, int64_t r,
                 const KeyBlock& block) {
    const int64_t keys = block.end - block.first, columns = block.columns;
    float *scores = s.probs + r * KEY_BLOCK, *keep = s.keep + r % Dot::DEPTH * KEY_BLOCK;
    const bool beyond = r >= at.rows;
    if (beyond) {
        std::memset(scores, 0, columns * sizeof(float));
        std::memset(s.slopes + r * KEY_BLOCK, 0, columns * sizeof(float));
        s.largest[r] = 0.0f;
        s.log2_sum[r] = INFINITE;
        s.delta[r] = 0.0f;
    } else if (call.mask.data) {
        if (r == 0 || call.mask.stride[2] != 0) mask.read(call.mask, at.b, at.h, at.first + r, block.first, keys);
        mask.apply(scores, log2_scale(call), columns);
    } else if (!scale_waits(call)) {
        multiply(scores, log2_scale(call), columns);
    }
    for (int64_t j = keys; j < columns; ++j) scores[j] = -INFINITE;
    if (!call.dropout.on) return;
    for (int64_t j = 0; j < columns; ++j) keep[j] = call.dropout.scale;
    if (!beyond) drop(keep, block.first, columns, call.dropout, at.b, at.h, at.first + r);
}

// P (after dropout) and dS of a block of rows and keys: use(r, j, p, slope) gets the DEPTH rows from row r as vectors
// at column j of the block. With `keeps_slopes`, dS is left in `s.slopes` too.
template <class Dot, class Use>
void differentiate(const Upstream& call, BlockLayout<Dot>& s, const RowBlock& at, const RowWords& rows,
                   const Packed& key, const Packed& value, const KeyBlock& block, bool keeps_slopes, Use use) {
    // The mask's elements arrive during the products.
    for (int64_t r = 0; call.mask.data && r < at.rows; ++r)
        prefetch_row(call.mask, at.b % call.mask.size[0], at.h, at.first + r, block.first, block.end - block.first);
    product<Dot, false>(at.rows, rows.queries, key, block.panel, block.last, 0, key.steps, s.probs, KEY_BLOCK);
    product<Dot, false>(at.rows, rows.grads, value, block.panel, block.last, 0, value.steps, s.slopes, KEY_BLOCK);
    const float factor = scale_waits(call) ? log2_scale(call) : 1.0f;
    MaskRow mask{s.mask};
    for (int64_t group = 0; group < at.rows; group += Dot::DEPTH) {
        for (int64_t d = 0; d < Dot::DEPTH; ++d) prepare_row(call, s, mask, at, group + d, block);
        for (int64_t j = 0; j < block.columns; j += LANES) {
            Vec p[Dot::DEPTH], slope[Dot::DEPTH];
            for (int d = 0; d < Dot::DEPTH; ++d) {
                const int64_t r = group + d;
                Vec gain = load(s.slopes + r * KEY_BLOCK + j);
                p[d] = exp2((load(s.probs + r * KEY_BLOCK + j) - s.largest[r]) * factor - s.log2_sum[r]);
                const Vec kept = call.dropout.on ? load(s.keep + d * KEY_BLOCK + j) : Vec{};
                if (call.dropout.on) gain *= kept;
                slope[d] = p[d] * (gain - s.delta[r]);
                if (call.dropout.on) p[d] *= kept;
            }
            for (int d = 0; keeps_slopes && d < Dot::DEPTH; ++d) store(s.slopes + (group + d) * KEY_BLOCK + j, slope[d]);
            use(group, j, p, slope);
        }
    }
}

// Adds dS of a block, from `s.slopes`, to the keys of the block in row(r), or to 0 if that is new memory. It is a loop of
// its own, so that the compiler cannot join the last product of dS and this sum into one instruction: it would round
// differently in the two passes that call this function.
template <class Dot, class Row>
void add_slopes(const BlockLayout<Dot>& s, int64_t rows, const KeyBlock& block, bool is_new, Row row) {
    const int64_t keys = block.end - block.first;
    for (int64_t r = 0; r < rows; ++r) {
        const float* slopes = s.slopes + r * KEY_BLOCK;
        float* to = row(r) + block.first;
        int64_t j = 0;
        for (; j + LANES <= keys; j += LANES) store(to + j, (is_new ? Vec{} : load(to + j)) + load(slopes + j));
        for (; j < keys; ++j) to[j] = (is_new ? 0.0f : to[j]) + slopes[j];
    }
}

}  // namespace
}  // namespace rsattn
