// The gradient of a float mask: dS, summed over the samples, and heads, that share an entry of the mask. A thread owns
// rows of it and walks over these samples in order, so the bits do not depend on the threads, and no partial sum of the
// mask's size is stored.
#pragma once
#include "differentiate.h"
#include "parts.h"
#include "rank.h"

namespace rsattn {
namespace {

// The rows of each entry (repeat index, head) of the mask are divided into small parts, so that few heads give many
// tasks. A thread takes neighboring parts of an entry together.
inline Parts mask_parts(const MaskGradientCall& call) { return Parts(call.query.size[2], 2 * TILE_ROWS, 64); }

// The sums of each part, for a mask that has one row for all queries.
struct RowSums {
    static constexpr bool ZEROED = true;
    float* values;
    int64_t columns;

    void lay(Arena& arena, const MaskGradientCall& call, int64_t parts) {
        columns = Panels(call.key.size[2]).columns();
        values = arena.take<float>(call.one_row ? parts * columns : 0);
    }
};

template <class Dot>
struct MaskGradientLayout : BlockLayout<Dot> {
    static constexpr bool ZEROED = true;
    Packed key, value;  // columns are keys: for Q K^T and dO V^T

    void lay(Arena& arena, const MaskGradientCall& call) {
        BlockLayout<Dot>::lay(arena, call);
        key = pack_room<Dot>(arena, call.key.size[2], call.key.size[3]);
        value = pack_room<Dot>(arena, call.key.size[2], call.key.size[3]);
    }
};

// Adds dS of the query rows [first, last) of one head; that of row i to `row(i)`.
template <class Dot, class Row>
void add_slopes_of_head(const MaskGradientCall& call, MaskGradientLayout<Dot>& s, int64_t b, int64_t h, int64_t first,
                        int64_t last, Row row) {
    const HeadGroup head{b, h, 1};
    pack_transposed<Dot>(&s.key, call.key, head, s.room, s.spare);
    pack_transposed<Dot>(&s.value, call.value, head, s.room, s.spare);
    const auto nothing = [](int64_t, int64_t, const Vec*, const Vec*) __attribute__((always_inline)) {};
    for (int64_t i = first; i < last; i += ROW_BLOCK) {
        const RowBlock at{b, h, i, last - i < ROW_BLOCK ? last - i : ROW_BLOCK};
        const RowWords rows = read_rows<Dot>(call, s, at);
        for (int64_t panel = 0; panel < s.key.panels.count; panel += PANELS_PER_BLOCK) {
            const KeyBlock block(s.key.panels, panel, call.key.size[2]);
            differentiate<Dot>(call, s, at, rows, s.key, s.value, block, true, nothing);
            add_slopes<Dot>(s, at.rows, block, false, [&](int64_t r) { return row(i + r); });
        }
    }
}

// The parts [part, beyond) of an entry of the mask, over its samples, and over all heads if the mask has one for all.
template <class Dot>
void add_parts_of_entry(const MaskGradientCall& call, MaskGradientLayout<Dot>& s, const Parts& parts,
                        const RowSums& sums, int64_t entry, int64_t part, int64_t beyond) {
    const View& to = call.grad_mask;
    const int64_t length = call.query.size[2], keys = call.key.size[2], heads = call.query.size[1];
    const int64_t first = part * parts.rows, last = parts.end(beyond - 1, length);
    const auto row = [&](int64_t i) {
        return call.one_row ? sums.values + (entry * parts.count + i / parts.rows) * sums.columns
                            : static_cast<float*>(to.data) + (entry * length + i) * keys;
    };
    if (!call.one_row) std::memset(row(first), 0, (last - first) * keys * sizeof(float));
    const int64_t head = entry % to.size[1], shared = to.size[1] == 1 ? heads : 1;
    for (int64_t b = entry / to.size[1]; b < call.query.size[0]; b += to.size[0])
        for (int64_t h = head; h < head + shared; ++h) add_slopes_of_head<Dot>(call, s, b, h, first, last, row);
}

template <class Dot>
void mask_gradient(const MaskGradientCall& call) {
    const int64_t entries = call.grad_mask.size[0] * call.grad_mask.size[1], keys = call.key.size[2];
    const Parts parts = mask_parts(call);
    Scratch<RowSums> sums(call, entries * parts.count);
    parallel_for(entries * parts.count, 1, [&](int64_t begin, int64_t end) {
        Scratch<MaskGradientLayout<Dot>> s(call);
        for (int64_t task = begin, next; task < end; task = next) {
            const int64_t entry = task / parts.count, start = entry * parts.count;
            next = start + parts.count < end ? start + parts.count : end;
            add_parts_of_entry<Dot>(call, s, parts, sums, entry, task - start, next - start);
        }
    });
    for (int64_t entry = 0; call.one_row && entry < entries; ++entry) {
        float* partial = sums.values + entry * parts.count * sums.columns;
        add_parts(partial, parts.count, sums.columns, sums.columns);
        std::memcpy(static_cast<float*>(call.grad_mask.data) + entry * keys, partial, keys * sizeof(float));
    }
}

}  // namespace
}  // namespace rsattn
