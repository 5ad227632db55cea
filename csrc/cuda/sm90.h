// The same as sm80.h for sm_90a: bulk tensor copies counted by barriers, and products of four warps together.
#pragma once
#include "sm80.h"
#if !defined(RSATTN_MODEL)
#include "instructions_sm90.h"
#endif

namespace rsattn::cuda {

// A tile for `group_multiply`: eight rows take 1024 bytes, and two panels are one tile's rows apart.
RSATTN_INLINE uint64_t descriptor(const char* tile) {
    constexpr uint64_t EIGHT_ROWS = 8 * ROW_BYTES / 16, ONE_PANEL = ROWS * ROW_BYTES / 16, SWIZZLE_128 = 1;
    return (shared_address(tile) & 0x3FFFFu) >> 4 | ONE_PANEL << 16 | EIGHT_ROWS << 32 | SWIZZLE_128 << 62;
}

template <class Element, int WIDTH>
struct Products90 {
    // All columns, because a descriptor begins where a row's swizzling begins.
    static constexpr int COLUMNS_AT_ONCE = WIDTH, ROWS_AT_ONCE = 32;

    template <int COUNT>
    RSATTN_INLINE static void score(float (&scores)[COUNT][4], const char* held, const char* tile, int) {
        group_hold(scores);
        group_begin();
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) {
            // Along the sum a panel's next 16 columns are 32 bytes further in any row, in spite of the swizzling.
            const int step = k / 4 * (ROWS * ROW_BYTES) + k % 4 * 32;
            group_multiply<Element>(scores, descriptor(held + step), descriptor(tile + step), k > 0);
        }
        group_commit();
        group_wait<0>();
        group_hold(scores);
    }
    template <int STEPS>
    RSATTN_INLINE static void weigh(float (&out)[WIDTH / 8][4], uint32_t (&factor)[STEPS][4], const char* tile, int,
                                    int = 0) {
        group_hold(out);
        group_hold(factor);
        group_begin();
#pragma unroll
        for (int k = 0; k < STEPS; ++k)
            group_multiply_transposed<Element>(out, factor[k], descriptor(rows_from(tile, 16 * k)), true);
        group_commit();
        group_wait<0>();
        group_hold(out);
    }
    RSATTN_INLINE static void publish() {
        async_fence();
        sync_block();
    }
};

template <class Element, int WIDTH>
struct Stream90 {
    using Products = Products90<Element, WIDTH>;
    const Inputs& inputs;
    const Tiles<WIDTH> tiles;
    const uint32_t barriers;  // of the two streamed tiles and of the values
    const int b, h, first;

    RSATTN_INLINE Stream90(const Inputs& inputs, char* memory, char* barriers, int b, int h, int first)
        : inputs(inputs), tiles{memory}, barriers(shared_address(barriers)), b(b), h(h), first(first) {
        if (thread_index() == 0) {
            for (int i = 0; i < 3; ++i) barrier_init(this->barriers + 8 * i, 1);
            barrier_init_fence();
        }
        sync_block();
    }

    // One thread requests all panels of a tile; zeros beyond the tensor.
    RSATTN_INLINE void copy(char* to, const TensorMap& map, uint32_t barrier, int row) {
#pragma unroll
        for (int panel = 0; panel < WIDTH / PANEL; ++panel)
            copy_box(shared_address(to) + panel * ROWS * ROW_BYTES, &map, barrier, panel * PANEL, row, h, b);
    }
    RSATTN_INLINE void load(char* to, const Operand& from, int row, int rows) {
        load_tile<WIDTH>(to, from, b, h, row, rows, inputs.width, inputs.groups * GROUP);
    }
    RSATTN_INLINE void request_first() {
        if (!inputs.mapped) {
            for (int group = 0; group < inputs.groups; ++group)
                load(tiles.held(group), inputs.held, first + group * ROWS, inputs.held_rows);
            load(tiles.streamed(0), inputs.streamed, 0, inputs.streamed_rows);
        } else if (thread_index() == 0) {
            barrier_arrive_expecting(barriers, (inputs.groups + 1) * Tiles<WIDTH>::BYTES);
            for (int group = 0; group < inputs.groups; ++group)
                copy(tiles.held(group), inputs.held_map, barriers, first + group * ROWS);
            copy(tiles.streamed(0), inputs.streamed_map, barriers, 0);
        }
    }
    RSATTN_INLINE void request_values(int t) {
        if (!inputs.mapped) {
            load(tiles.values(), inputs.values, t * COLUMNS, inputs.streamed_rows);
        } else if (thread_index() == 0) {
            barrier_arrive_expecting(barriers + 16, Tiles<WIDTH>::BYTES);
            copy(tiles.values(), inputs.values_map, barriers + 16, t * COLUMNS);
        }
    }
    RSATTN_INLINE void request_streamed(int t) {
        if (t * COLUMNS >= inputs.streamed_rows) return;
        if (!inputs.mapped) {
            load(tiles.streamed(t), inputs.streamed, t * COLUMNS, inputs.streamed_rows);
        } else if (thread_index() == 0) {
            barrier_arrive_expecting(barriers + t % 2 * 8, Tiles<WIDTH>::BYTES);
            copy(tiles.streamed(t), inputs.streamed_map, barriers + t % 2 * 8, t * COLUMNS);
        }
    }
    RSATTN_INLINE void wait_streamed(int t) {
        if (inputs.mapped)
            barrier_wait(barriers + t % 2 * 8, t / 2 % 2);
        else
            copies_done();
        sync_block();
    }
    RSATTN_INLINE void wait_values(int t) {
        if (inputs.mapped) {
            barrier_wait(barriers + 16, t % 2);
        } else {
            copies_done();
            sync_block();
        }
    }
    // Makes this thread's own copies visible to products.
    RSATTN_INLINE void copies_done() {
        copy_commit();
        copy_wait<0>();
        async_fence();
    }

    RSATTN_INLINE void score(float (&scores)[COLUMNS / 8][4], int t) {
        Products::score(scores, tiles.held(thread_index() / GROUP), tiles.streamed(t), inputs.width);
    }
    RSATTN_INLINE void weigh(float (&out)[WIDTH / 8][4], uint32_t (&probs)[COLUMNS / 16][4]) {
        Products::weigh(out, probs, tiles.values(), inputs.width);
    }
};

}  // namespace rsattn::cuda
