// The only matrix product: c[i][j] (+)= sum_k a[i][k] b[k][j]. a is read one word at a time with any stride; b is
// packed into panels of a few vectors so that a register tile reads it in order.
#pragma once
#include "words.h"

namespace rsattn {
namespace {

// A row of vectors, divided into the fewest panels of at most TILE_VECTORS, of nearly equal width: a panel of one
// vector would keep too few sums in flight.
struct Panels {
    int64_t vectors = 0, count = 0;
    Panels() = default;
    explicit Panels(int64_t columns)
        : vectors(divide_up(columns, LANES)), count(divide_up(vectors, TILE_VECTORS)) {}
    int64_t start(int64_t panel) const {
        const int64_t more = vectors % count;
        return panel * (vectors / count) + (panel < more ? panel : more);
    }
    int64_t width(int64_t panel) const { return start(panel + 1) - start(panel); }
    int64_t columns() const { return vectors * LANES; }
};

// b: for each panel, `steps` rows of its vectors.
struct Packed {
    uint32_t* words;
    Panels panels;
    int64_t steps;
    uint32_t* at(int64_t panel, int64_t step) const {
        return words + (panels.start(panel) * steps + step * panels.width(panel)) * LANES;
    }
};

struct Words {  // a: the word of row i, step k is at data + i * row + k * step
    const uint32_t* data;
    int64_t row, step;
};

template <class Dot, bool ADD, int ROWS, int VECTORS>
RSATTN_INLINE void tile(Words a, const uint32_t* b, int64_t steps, float* c, int64_t c_row) {
    Vec sums[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < steps; ++k) {
        WordVec column[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) column[v] = load_as<WordVec>(b + (k * VECTORS + v) * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const WordVec row = broadcast(load_as<uint32_t>(a.data + r * a.row + k * a.step));
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Dot::dot(sums[r][v], row, column[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* to = c + r * c_row + v * LANES;
            store(to, ADD ? load(to) + sums[r][v] : sums[r][v]);
        }
}

template <class Dot, bool ADD, int VECTORS>
void panel_product(int64_t rows, Words a, const uint32_t* b, int64_t steps, float* c, int64_t c_row) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS) {
        tile<Dot, ADD, TILE_ROWS, VECTORS>(a, b, steps, c, c_row);
        a.data += TILE_ROWS * a.row;
        c += TILE_ROWS * c_row;
    }
    switch (rows) {
        case 5: return tile<Dot, ADD, 5, VECTORS>(a, b, steps, c, c_row);
        case 4: return tile<Dot, ADD, 4, VECTORS>(a, b, steps, c, c_row);
        case 3: return tile<Dot, ADD, 3, VECTORS>(a, b, steps, c, c_row);
        case 2: return tile<Dot, ADD, 2, VECTORS>(a, b, steps, c, c_row);
        case 1: return tile<Dot, ADD, 1, VECTORS>(a, b, steps, c, c_row);
    }
}

// The panels [first, last) of b over its steps [begin, end). c has `rows` rows and begins with panel `first`.
template <class Dot, bool ADD>
void product(int64_t rows, Words a, const Packed& b, int64_t first, int64_t last, int64_t begin, int64_t end, float* c,
             int64_t c_row) {
    for (int64_t panel = first; panel < last; ++panel) {
        const uint32_t* from = b.at(panel, begin);
        switch (b.panels.width(panel)) {
            case 1: panel_product<Dot, ADD, 1>(rows, a, from, end - begin, c, c_row); break;
            case 2: panel_product<Dot, ADD, 2>(rows, a, from, end - begin, c, c_row); break;
#if !defined(__AVX__) || defined(__AVX512F__)
            case 3: panel_product<Dot, ADD, 3>(rows, a, from, end - begin, c, c_row); break;
            case 4: panel_product<Dot, ADD, 4>(rows, a, from, end - begin, c, c_row); break;
#endif
        }
        c += b.panels.width(panel) * LANES;
    }
}

}  // namespace
}  // namespace rsattn
