// Tiles of 16-bit elements in shared memory, and how they are loaded.
//
// A tile is 64 rows of one or two panels of 64 columns. A panel's row is 128 bytes, eight pieces of 16. Piece c of row
// r is at c ^ (r % 8), so that neither the pieces of a row nor those of a column share a bank. The bulk copies and
// products of sm_90a call this swizzling by 128 bytes; sm_80 uses the same tiles.
#pragma once
#include "instructions.h"

namespace rsattn::cuda {

constexpr int ROWS = 64;         // of a tile and of a warpgroup; 16 for each warp
constexpr int GROUP = 128;       // threads of a warpgroup
constexpr int PANEL = 64;        // columns
constexpr int ROW_BYTES = 128;   // of one row of a panel
constexpr int PIECE = 8;         // elements in 16 bytes

// A (b, h, n, e) tensor of 16-bit elements; strides are in elements.
struct Operand {
    uint16_t* data = nullptr;
    int64_t stride[4] = {0, 0, 0, 0};
    bool vectors = false;  // rows are contiguous and begin at multiples of 16 bytes

    RSATTN_INLINE uint16_t* head(int b, int h) const { return data + b * stride[0] + h * stride[1]; }
};

struct alignas(16) Piece {
    uint16_t number[PIECE];
};

// Bytes from the start of a tile. Unsigned, because a signed remainder costs more instructions.
RSATTN_INLINE int offset_of(unsigned row, unsigned column) {
    return column / PANEL * (ROWS * ROW_BYTES) + row * ROW_BYTES + ((column % PANEL / PIECE) ^ (row % 8)) * 16 +
           column % PIECE * 2;
}

// The offset of the piece at (row, column) of a tile; and the offset of a piece a multiple of 16 columns further than
// one in the first 16 columns: one instruction, while `offset_of` takes several.
RSATTN_INLINE uint32_t piece_address(const char* tile, int row, int column) {
    return shared_address(tile + offset_of(row, column));
}
RSATTN_INLINE uint32_t columns_on(uint32_t address, int columns) {
    return (address + columns / PANEL * (ROWS * ROW_BYTES)) ^ (columns % PANEL * 2);
}

// The rows of a tile from `first` on; `first` is a multiple of 8.
RSATTN_INLINE const char* rows_from(const char* tile, int first) { return tile + first * ROW_BYTES; }

// The piece of `head` at (row, column); zeros outside rows x width.
RSATTN_INLINE Piece gather(const Operand& from, const uint16_t* head, int row, int column, int rows, int width) {
    Piece piece = {};
    if (row >= rows || column >= width) return piece;
    const uint16_t* source = head + row * from.stride[2] + column * from.stride[3];
    if (from.vectors) return *reinterpret_cast<const Piece*>(source);
#pragma unroll
    for (int e = 0; e < PIECE; ++e) piece.number[e] = source[e * from.stride[3]];
    return piece;
}

// The `threads` threads of a block load rows `first`... of one head into a tile of WIDTH columns. Rows from `rows` on
// and columns from `width` on, a multiple of 8, become zero. The copy is asynchronous if `from.vectors`.
template <int WIDTH>
RSATTN_INLINE void load_tile(char* tile, const Operand& from, int b, int h, int first, int rows, int width,
                             int threads) {
    // A thread stays in its column and moves down the rows.
    constexpr int PIECES = WIDTH / PIECE;
    const int column = thread_index() % PIECES * PIECE;
    const uint16_t* head = from.head(b, h);
    if (!from.vectors) {
#pragma unroll 1
        for (int row = thread_index() / PIECES; row < ROWS; row += threads / PIECES)
            *reinterpret_cast<Piece*>(tile + offset_of(row, column)) =
                gather(from, head, first + row, column, rows, width);
        return;
    }
#pragma unroll 2
    for (int row = thread_index() / PIECES; row < ROWS; row += threads / PIECES) {
        const bool inside = first + row < rows && column < width;
        copy_async(shared_address(tile + offset_of(row, column)),
                   inside ? head + (first + row) * from.stride[2] + column : head, inside);
    }
}

// `load_tile` of the sum of two tensors, each element rounded once. The copy is not asynchronous.
template <class Element, int WIDTH>
RSATTN_INLINE void load_sum(char* tile, const Operand& from, const Operand& other, int b, int h, int first, int rows,
                            int width, int threads) {
    constexpr int PIECES = WIDTH / PIECE;
    const int column = thread_index() % PIECES * PIECE;
#pragma unroll 1
    for (int row = thread_index() / PIECES; row < ROWS; row += threads / PIECES) {
        Piece sum = gather(from, from.head(b, h), first + row, column, rows, width);
        const Piece added = gather(other, other.head(b, h), first + row, column, rows, width);
#pragma unroll
        for (int e = 0; e < PIECE; ++e)
            sum.number[e] = round_to<Element>(to_float<Element>(sum.number[e]) + to_float<Element>(added.number[e]));
        *reinterpret_cast<Piece*>(tile + offset_of(row, column)) = sum;
    }
}

// The rows of a warp's fragments are lane / 4 and lane / 4 + 8 of its 16. Of every eight columns a lane has the two at
// 2 (lane % 4): elements 0 and 1 in the first row, 2 and 3 in the second.
RSATTN_INLINE int fragment_row() { return thread_index() / 32 % 4 * 16 + thread_index() % 32 / 4; }
RSATTN_INLINE int fragment_column() { return thread_index() % 4 * 2; }

// Fragments (64 x 8 COUNT) of a warpgroup as the first factor of a product, each pair of columns rounded.
template <class Element, int COUNT>
RSATTN_INLINE void as_factor(uint32_t (&factor)[COUNT / 2][4], const float (&fragments)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
            factor[n / 2][n % 2 * 2 + r] = pack<Element>(fragments[n][2 * r], fragments[n][2 * r + 1]);
}

template <int COUNT>
RSATTN_INLINE void set_zero(float (&fragments)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) fragments[n][i] = 0.0f;
}

// A row of fragments, r = 0 or 1, times `factor`, to memory.
template <class Element, int COUNT>
RSATTN_INLINE void store_row(uint16_t* to, const float (&fragments)[COUNT][4], int r, int width, float factor) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n) {
        const int column = 8 * n + fragment_column();
        if (column < width)
            *reinterpret_cast<uint32_t*>(to + column) =
                pack<Element>(fragments[n][2 * r] * factor, fragments[n][2 * r + 1] * factor);
    }
}

}  // namespace rsattn::cuda
