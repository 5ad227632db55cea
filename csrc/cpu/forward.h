// Forward: one block of query rows at a time, with all their scores on chip. The softmax needs no rescaling, and the
// column sums (the attention received, whose maximum is the induced norm) are taken while the rows are in cache.
#pragma once
#include "parts.h"
#include "philox.h"
#include "rank.h"

namespace rsattn {
namespace {

constexpr int64_t FORWARD_BLOCK = 24;  // query rows
constexpr int64_t CACHE = 640 << 10;   // bytes of a core's second-level cache for packed keys and values

// A part's result for its head: a sum for each column where they are wanted, then one value where that is the norm.
inline bool sums_columns(const ForwardCall& call) { return call.norm == Norm::induced || call.received; }
inline int64_t tally_columns(const ForwardCall& call) {
    return sums_columns(call) ? Panels(call.key.size[2]).columns() : 0;
}
inline int64_t tally_size(const ForwardCall& call) {
    return tally_columns(call) + (call.norm == Norm::induced ? 0 : LANES);  // whole vectors
}

struct Tallies {
    static constexpr bool ZEROED = true;
    float* values;
    void lay(Arena& arena, const ForwardCall& call, int64_t parts) {
        values = arena.take<float>(call.query.size[0] * call.query.size[1] * parts * tally_size(call));
    }
};

template <class Dot>
struct ForwardLayout {
    static constexpr bool ZEROED = true;
    Packed key[MOST_HEADS], value[MOST_HEADS];
    uint32_t *queries, *room, *weights;
    float *spare, *scores, *out, *mask;

    void lay(Arena& arena, const ForwardCall& call, int64_t group) {
        const int64_t width = call.query.size[3], keys = call.key.size[2], row = words_room<Dot>(width);
        for (int64_t g = 0; g < group; ++g) {
            key[g] = pack_room<Dot>(arena, keys, width);
            if (!call.alone()) value[g] = pack_room<Dot>(arena, width, keys);
        }
        const int64_t columns = key->panels.columns();
        queries = arena.take<uint32_t>(FORWARD_BLOCK * row);
        room = arena.take<uint32_t>((LANES + 1) * row);
        spare = arena.take<float>(round_up(width, LANES));
        scores = arena.take<float>(FORWARD_BLOCK * columns);
        mask = arena.take<float>(call.mask.data ? columns : 0);
        if (call.alone()) return;
        weights = arena.take<uint32_t>(Dot::DEPTH == 1 ? 0 : FORWARD_BLOCK * columns / Dot::DEPTH);
        out = arena.take<float>(FORWARD_BLOCK * value->panels.columns());
    }
};

// Scores -> their exponentials, and the terms of the norms. It runs pass by pass over the block and not row by row, so
// that the chain of dependent steps at the end of a row overlaps with the next row.
struct Softmax {
    // 1 / (sum of the row's exponentials). This is the row's largest probability, because its largest exponential is 1.
    // It is 0 if the mask hides all keys. Without a mask, scores that are all -inf come from infinite inputs and give
    // NaN.
    float inverse[FORWARD_BLOCK];

    // `log2_sum` may be nullptr.
    template <class Dot>
    void block(float* scores, uint32_t* words, int64_t rows, float scale, bool masked, int64_t keys, int64_t columns,
               float* largest, float* log2_sum) {
        for (int64_t r = 0; r < rows; ++r) {
            float* row = scores + r * columns;
            for (int64_t j = keys; j < columns; ++j) row[j] = -INFINITE;
            const float most = row_maximum(row, columns);
            largest[r] = most == -INFINITE ? 0.0f : most;
        }
        float total[FORWARD_BLOCK];
        for (int64_t r = 0; r < rows; ++r)
            total[r] =
                exponentials<Dot>(scores + r * columns, words ? words + r * columns / Dot::DEPTH : nullptr, scale, largest[r],
                                  columns);
        for (int64_t r = 0; r < rows; ++r) {
            const bool blind = masked && total[r] == 0.0f;
            inverse[r] = blind ? 0.0f : total[r] == 0.0f ? __builtin_nanf("") : 1.0f / total[r];
            if (log2_sum) log2_sum[r] = blind ? INFINITE : __builtin_log2f(total[r]);
        }
    }
};

// The exponentials of the query rows [first, first + rows) of a head, in `s.scores` and unless `call.alone()` as words.
template <class Dot>
Softmax exponentials_of_block(const ForwardCall& call, ForwardLayout<Dot>& s, const Packed& key, int64_t b, int64_t h,
                              int64_t first, int64_t rows) {
    const int64_t length = call.query.size[2], keys = call.key.size[2], columns = key.panels.columns();
    const bool waits = scale_waits(call), masked = call.mask.data;
    const float scale = log2_scale(call), factor = waits ? scale : 1.0f;
    const Words queries = rows_as_words<Dot>(call.query, b, h, first, rows, call.scale, s.queries, s.spare);
    product<Dot, false>(rows, queries, key, 0, key.panels.count, 0, key.steps, s.scores, columns);
    MaskRow mask{s.mask};
    for (int64_t r = 0; masked && r < rows; ++r) {
        if (r == 0 || call.mask.stride[2] != 0) mask.read(call.mask, b, h, first + r, 0, keys);
        mask.apply(s.scores + r * columns, scale, columns);
    }
    if (!masked && !waits) multiply(s.scores, scale, rows * columns);
    Softmax softmax;
    if (call.alone()) {
        float largest[FORWARD_BLOCK];
        softmax.block<Single>(s.scores, nullptr, rows, factor, masked, keys, columns, largest, nullptr);
    } else {
        float* statistics = call.statistics + (b * call.query.size[1] + h) * 2 * length + first;
        softmax.block<Dot>(s.scores, s.weights, rows, factor, masked, keys, columns, statistics, statistics + length);
    }
    return softmax;
}

// The query rows [first, first + rows) of a head: output, statistics, and terms of the column sums and of the norm.
template <class Dot>
void forward_block(const ForwardCall& call, ForwardLayout<Dot>& s, const Packed& key, const Packed& value, int64_t b,
                   int64_t h, int64_t first, int64_t rows, float* tally) {
    const int64_t keys = call.key.size[2], columns = key.panels.columns();
    const Softmax softmax = exponentials_of_block<Dot>(call, s, key, b, h, first, rows);
    if (sums_columns(call)) add_columns(tally, s.scores, columns, softmax.inverse, rows, columns);
    if (call.alone()) return;
    float* own = tally + tally_columns(call);  // the value of the other norms
    for (int64_t r = 0; r < rows; ++r) {
        float* row = s.scores + r * columns;
        if (call.dropout.on) drop(row, 0, keys, call.dropout, b, h, first + r);
        if (call.norm == Norm::confidence) *own += softmax.inverse[r];
        if (call.norm == Norm::entrywise && call.dropout.on)
            *own += row_sum(row, columns) * softmax.inverse[r] * call.dropout.scale;
        if (call.norm == Norm::entrywise && !call.dropout.on) *own += softmax.inverse[r] == 0.0f ? 0.0f : 1.0f;
        if (call.dropout.on && Dot::DEPTH > 1) to_words<Dot>(s.weights + r * columns / Dot::DEPTH, row, columns);
    }
    const int64_t out_row = value.panels.columns();
    const uint32_t* weights = Dot::DEPTH == 1 ? reinterpret_cast<const uint32_t*>(s.scores) : s.weights;
    product<Dot, false>(rows, Words{weights, columns / Dot::DEPTH, 1}, value, 0, value.panels.count, 0,
                        value.steps, s.out, out_row);
    for (int64_t r = 0; r < rows; ++r)
        write_row(call.output, b, h, first + r, s.out + r * out_row, softmax.inverse[r] * call.dropout.scale);
}

// Adds up the parts of every head: the attention received, the norms and the best heads.
inline void rank(const ForwardCall& call, float* tallies, int64_t parts) {
    const int64_t batch = call.query.size[0], heads = call.query.size[1], keys = call.key.size[2];
    const int64_t columns = tally_columns(call), size = tally_size(call);
    parallel_for(batch * heads, 1 + 65536 / (parts * size), [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) {
            float* partial = tallies + head * parts * size;
            const float most = add_parts(partial, parts, size, columns);
            if (call.received) std::memcpy(call.received + head * keys, partial, keys * sizeof(float));
            if (call.alone()) continue;
            if (call.norm == Norm::induced) {
                call.norms[head] = most;
                continue;
            }
            float total = 0.0f;
            for (int64_t p = 0; p < parts; ++p) total += partial[p * size + columns];
            call.norms[head] = call.norm == Norm::confidence ? total / float(call.query.size[2]) : total;
        }
    });
    if (call.alone()) return;
    if (call.per_sample) {
        for (int64_t b = 0; b < batch; ++b) call.best_head[b] = best_of(call.norms + b * heads, heads);
        return;
    }
    int64_t best = 0;
    float most = 0.0f;
    for (int64_t h = 0; h < heads; ++h) {
        float total = 0.0f;
        for (int64_t b = 0; b < batch; ++b) total += call.norms[b * heads + h];
        if (h == 0 || beats(total, most)) best = h, most = total;
    }
    for (int64_t b = 0; b < batch; ++b) call.best_head[b] = best;
}

template <class Dot>
void forward(const ForwardCall& call) {
    const int64_t length = call.query.size[2], keys = call.key.size[2], width = call.key.size[3];
    if (call.query.size[0] == 0) return;
    const Parts parts(length, 96, 16);  // independent of the batch, so that norms are too
    const int64_t bytes = (call.alone() ? 1 : 2) * sizeof(uint32_t) * words_in<Dot>(keys) * Panels(width).columns();
    const Tasks tasks(call.query.size[0], call.query.size[1], parts.count, bytes, CACHE);
    Scratch<Tallies> tallies(call, parts.count);
    parallel_for(tasks.count, 1, [&](int64_t begin, int64_t end) {
        Scratch<ForwardLayout<Dot>> s(call, tasks.group);
        for (int64_t task = begin; task < end; ++task) {
            const HeadGroup group = tasks.heads_of(task);
            const int64_t part = task % parts.count, last = parts.end(part, length);
            if (task == begin || part == 0) {
                pack_transposed<Dot>(s.key, call.key, group, s.room, s.spare);
                if (!call.alone()) pack_straight<Dot>(s.value, call.value, group, s.room, s.spare);
            }
            for (int64_t i = part * parts.rows; i < last; i += FORWARD_BLOCK)
                for (int64_t g = 0; g < group.count; ++g) {
                    const int64_t h = group.first + g, head = group.b * call.query.size[1] + h;
                    forward_block<Dot>(call, s, s.key[g], s.value[g], group.b, h, i,
                                       last - i < FORWARD_BLOCK ? last - i : FORWARD_BLOCK,
                                       tallies.values + (head * parts.count + part) * tally_size(call));
                }
        }
    });
    rank(call, tallies.values, parts.count);
}

}  // namespace
}  // namespace rsattn
