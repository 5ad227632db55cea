// Packs a caller's strided rows into the words that a product reads. No code above this file handles strides or types.
#pragma once
#include "product.h"
#include "scratch.h"

namespace rsattn {
namespace {

// Whether rows can be read in place as words, in whole vectors, without reading past their ends.
template <class Dot>
bool in_place(const View& from) {
    return Dot::holds(from.type) && from.stride[3] == 1 && from.size[3] % (Dot::DEPTH * LANES) == 0 &&
           from.stride[2] % Dot::DEPTH == 0;
}

// Row i of (b, h) as words: in place, or converted to `room`. `spare` and `room` hold one row each and are zero beyond
// its end.
template <class Dot>
const uint32_t* row_words(const View& from, bool lies, int64_t b, int64_t h, int64_t i, float sign, uint32_t* room,
                          float* spare) {
    if (lies && sign == 1.0f) return reinterpret_cast<const uint32_t*>(row_at(from, b, h, i));
    const int64_t count = from.size[3];
    read_row(spare, from, b, h, i);
    if (sign != 1.0f)
        for (int64_t e = 0; e < count; ++e) spare[e] *= sign;
    to_words<Dot>(room, spare, count);
    return room;
}

// The rows [first, first + rows) of (b, h), times the sign of `signed_by`, as words.
template <class Dot>
Words rows_as_words(const View& from, int64_t b, int64_t h, int64_t first, int64_t rows, float signed_by, uint32_t* room,
                    float* spare) {
    const int64_t row = words_room<Dot>(from.size[3]);
    if (signed_by >= 0.0f && in_place<Dot>(from))
        return {reinterpret_cast<const uint32_t*>(row_at(from, b, h, first)), from.stride[2] / Dot::DEPTH, 1};
    const float sign = signed_by < 0.0f ? -1.0f : 1.0f;
    for (int64_t r = 0; r < rows; ++r) row_words<Dot>(from, false, b, h, first + r, sign, room + r * row, spare);
    return {room, row, 1};
}

// Memory for `columns` columns with `depth` terms each.
template <class Dot>
Packed pack_room(Arena& arena, int64_t columns, int64_t depth) {
    const Panels panels(columns);
    const int64_t steps = words_in<Dot>(depth);
    return {arena.take<uint32_t>(panels.columns() * steps), panels, steps};
}

// Neighboring heads of one sample. If Q, K and V are packed, their rows are neighbors in memory, and reading a few rows
// of several heads is faster than many rows of one. So all heads of a group are read together.
struct HeadGroup {
    int64_t b, first, count;
};
constexpr int64_t MOST_HEADS = 4;

// b[k][j] = row j, word k: rows become columns. `room` holds LANES rows of words and a row of zeros.
template <class Dot>
void pack_transposed(const Packed* to, const View& from, const HeadGroup& group, uint32_t* room, float* spare) {
    const int64_t count = from.size[2], row = words_room<Dot>(from.size[3]);
    const bool lies = in_place<Dot>(from);
    const uint32_t* zeros = room + LANES * row;
    const Panels& panels = to->panels;
    for (int64_t panel = 0; panel < panels.count; ++panel) {
        const int64_t width = panels.width(panel);
        for (int64_t v = 0; v < width; ++v) {
            const int64_t first = (panels.start(panel) + v) * LANES;
            for (int64_t g = 0; g < group.count; ++g) {
                const uint32_t* rows[LANES];
                for (int64_t r = 0; r < LANES; ++r)
                    rows[r] = first + r < count ? row_words<Dot>(from, lies, group.b, group.first + g, first + r, 1.0f,
                                                                 room + r * row, spare)
                                                : zeros;
                for (int64_t k = 0; k < to->steps; k += LANES) {
                    WordVec block[LANES];
#pragma GCC unroll 16
                    for (int r = 0; r < LANES; ++r) block[r] = load_as<WordVec>(rows[r] + k);
                    transpose(block);
                    uint32_t* out = to[g].at(panel, k) + v * LANES;
                    const int64_t steps = to->steps - k;
#pragma GCC unroll 16
                    for (int r = 0; r < LANES; ++r)
                        if (r < steps) store(out + r * width * LANES, block[r]);
                }
            }
        }
    }
}

// b[k][j]: the elements of column j in the DEPTH rows that step k sums over.
template <class Dot>
RSATTN_INLINE void stack_rows(const Packed& to, int64_t step, const uint32_t* const* rows) {
    int64_t column = 0;
    for (int64_t panel = 0; panel < to.panels.count; ++panel) {
        uint32_t* out = to.at(panel, step);
        for (int64_t v = to.panels.width(panel); v > 0; --v, out += LANES, column += LANES) {
            if constexpr (Dot::DEPTH == 1) {
                store(out, load_as<WordVec>(rows[0] + column));
            } else {
                const uint16_t* a = reinterpret_cast<const uint16_t*>(rows[0]) + column;
                const uint16_t* b = reinterpret_cast<const uint16_t*>(rows[1]) + column;
                const WordVec low = __builtin_convertvector(load_as<HalfVec>(a), WordVec);
                const WordVec high = __builtin_convertvector(load_as<HalfVec>(b), WordVec);
                store(out, low | high << 16);
            }
        }
    }
}

// b[k][j] = column j of the rows k: rows stay rows. `room` as above.
template <class Dot>
void pack_straight(const Packed* to, const View& from, const HeadGroup& group, uint32_t* room, float* spare) {
    const int64_t row = words_room<Dot>(from.size[3]);
    const bool lies = in_place<Dot>(from);
    for (int64_t step = 0; step < to->steps; ++step) {
        for (int64_t g = 0; g < group.count; ++g) {
            const uint32_t* rows[Dot::DEPTH];
            for (int64_t d = 0; d < Dot::DEPTH; ++d) {
                const int64_t i = step * Dot::DEPTH + d;
                rows[d] = i < from.size[2]
                              ? row_words<Dot>(from, lies, group.b, group.first + g, i, 1.0f, room + d * row, spare)
                              : room + LANES * row;
            }
            stack_rows<Dot>(to[g], step, rows);
        }
    }
}

}  // namespace
}  // namespace rsattn
