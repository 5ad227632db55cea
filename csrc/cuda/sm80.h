// Products and streams of tiles on sm_80 and later: 16-byte asynchronous copies, ldmatrix, mma.sync. sm90.h has the
// same names and fragments, so that the code between the products is written once.
#pragma once
#include "tile.h"

namespace rsattn::cuda {

constexpr int COLUMNS = 64;     // of a tile of scores
constexpr int MOST_GROUPS = 2;  // warpgroups of a block that streams

// The inputs of a streaming block: one tile of rows that each warpgroup holds; streamed tiles for the scores; and tiles
// that are multiplied by probabilities. The more rows share the streamed tiles, the less is read.
struct Inputs {
    Operand held, streamed, values;
    TensorMap held_map, streamed_map, values_map;
    int held_rows, streamed_rows, width;
    int groups;   // warpgroups, 1 or 2
    bool mapped;  // whether the tensor maps exist
};

// The tiles of a streaming block in shared memory: two streamed ones that alternate, one of values, the held ones.
template <int WIDTH>
struct Tiles {
    static constexpr int BYTES = ROWS * WIDTH * 2;
    static RSATTN_LAYOUT int bytes(int groups) { return (3 + groups) * BYTES; }
    char* memory;
    RSATTN_INLINE char* streamed(int t) const { return memory + t % 2 * BYTES; }
    RSATTN_INLINE char* values() const { return memory + 2 * BYTES; }
    RSATTN_INLINE char* held(int group) const { return memory + (3 + group) * BYTES; }
};

template <class Element, int WIDTH>
struct Products80 {
    // The columns of a result that fit in registers along with the other results.
    static constexpr int COLUMNS_AT_ONCE = 32, ROWS_AT_ONCE = 16;

    // A warp's 16 rows of a tile as the first factor, from column 16 k on.
    RSATTN_INLINE static void take(uint32_t (&factor)[4], const char* tile, int k) {
        const int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
        load_matrices(factor, columns_on(piece_address(tile, 16 * warp + lane % 16, lane / 16 * 8), 16 * k));
    }

    // scores (64 x 8 COUNT) = a (64 x WIDTH) b^T, b in `tile`; `a(k)` is the result of `take`.
    template <int COUNT, class A>
    RSATTN_INLINE static void score_with(float (&scores)[COUNT][4], A&& a, const char* tile, int width) {
        const int lane = thread_index() % 32;
        const uint32_t from = piece_address(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
        set_zero(scores);
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) {
            if (WIDTH > PANEL && 16 * k >= width) break;
            const uint32_t(&factor)[4] = a(k);
#pragma unroll
            for (int n = 0; n < COUNT; n += 2) {
                uint32_t b[4];
                load_matrices(b, columns_on(from + 8 * n * ROW_BYTES, 16 * k));
                multiply<Element>(scores[n], factor, b[0], b[1]);
                multiply<Element>(scores[n + 1], factor, b[2], b[3]);
            }
        }
    }
    template <int COUNT>
    RSATTN_INLINE static void score(float (&scores)[COUNT][4], const char* held, const char* tile, int width) {
        uint32_t factor[4];
        score_with(
            scores,
            [&](int k) -> const uint32_t(&)[4] {
                take(factor, held, k);
                return factor;
            },
            tile, width);
    }

    // out (64 x 8 COUNT) += factor (64 x 16 STEPS) b, b in `tile`, its columns from `first` on, a multiple of 16.
    template <int COUNT, int STEPS>
    RSATTN_INLINE static void weigh(float (&out)[COUNT][4], uint32_t (&factor)[STEPS][4], const char* tile, int width,
                                    int first = 0) {
        const int lane = thread_index() % 32;
        const uint32_t from = columns_on(piece_address(tile, lane % 16, lane / 16 * 8), first);
#pragma unroll
        for (int n = 0; n < COUNT; n += 2) {
            if (WIDTH > PANEL && first + 8 * n >= width) break;
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                uint32_t b[4];
                load_matrices_transposed(b, columns_on(from + 16 * k * ROW_BYTES, 8 * n));
                multiply<Element>(out[n], factor[k], b[0], b[1]);
                multiply<Element>(out[n + 1], factor[k], b[2], b[3]);
            }
        }
    }

    // After this, all products see what any thread of the block stored in shared memory or copied there.
    RSATTN_INLINE static void publish() { sync_block(); }
};

template <class Element, int WIDTH>
struct Stream80 {
    using Products = Products80<Element, WIDTH>;
    const Inputs& inputs;
    const Tiles<WIDTH> tiles;
    const int b, h, first;
    uint32_t held[WIDTH / 16][4];

    RSATTN_INLINE Stream80(const Inputs& inputs, char* memory, char*, int b, int h, int first)
        : inputs(inputs), tiles{memory}, b(b), h(h), first(first) {}

    RSATTN_INLINE void load(char* to, const Operand& from, int row, int rows) {
        load_tile<WIDTH>(to, from, b, h, row, rows, inputs.width, inputs.groups * GROUP);
    }
    RSATTN_INLINE void request_first() {
        for (int group = 0; group < inputs.groups; ++group)
            load(tiles.held(group), inputs.held, first + group * ROWS, inputs.held_rows);
        load(tiles.streamed(0), inputs.streamed, 0, inputs.streamed_rows);
        copy_commit();
    }
    RSATTN_INLINE void request_values(int t) {
        load(tiles.values(), inputs.values, t * COLUMNS, inputs.streamed_rows);
        copy_commit();
    }
    RSATTN_INLINE void request_streamed(int t) {
        if (t * COLUMNS < inputs.streamed_rows)
            load(tiles.streamed(t), inputs.streamed, t * COLUMNS, inputs.streamed_rows);
        copy_commit();
    }
    // All threads have finished tile t - 1, and tile t has arrived.
    RSATTN_INLINE void wait_streamed(int t) {
        copy_wait<0>();
        sync_block();
        if (t > 0) return;
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) Products::take(held[k], tiles.held(thread_index() / GROUP), k);
    }
    // The values were requested before the streamed tile, which may still be in flight.
    RSATTN_INLINE void wait_values(int) {
        copy_wait<1>();
        sync_block();
    }
    RSATTN_INLINE void score(float (&scores)[COLUMNS / 8][4], int t) {
        Products::score_with(
            scores, [&](int k) -> const uint32_t(&)[4] { return held[k]; }, tiles.streamed(t), inputs.width);
    }
    RSATTN_INLINE void weigh(float (&out)[WIDTH / 8][4], uint32_t (&probs)[COLUMNS / 16][4]) {
        Products::weigh(out, probs, tiles.values(), inputs.width);
    }
};

}  // namespace rsattn::cuda
