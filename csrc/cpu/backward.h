// Backward: dQ, dK and dV of a head, one block of query rows and one block of keys at a time. P is recomputed from the
// row statistics of the forward pass, so no N x N tensor is stored. Equations: kernels/README.md.
#pragma once
#include "mask_gradient.h"

namespace rsattn {
namespace {

// For a thread's packed operands and sums: the whole second-level cache, since each is read once per ROW_BLOCK rows.
constexpr int64_t BACKWARD_CACHE = 1 << 20;
// With fewer heads than this, heads are divided into parts, so that more threads than heads have work. It is a constant
// and not the number of threads, because the parts determine how dK and dV are rounded.
constexpr int64_t TASKS_WANTED = 64;

inline Parts backward_parts(const BackwardCall& call) {
    const int64_t heads = call.query.size[0] * call.query.size[1];
    return Parts(call.query.size[2], KEY_BLOCK, divide_up(TASKS_WANTED, heads));
}

// dK and dV of one part of a head, unrounded and before the factor `scale`.
struct KeyGradients {
    float *key, *value;
    int64_t columns;  // floats of a row

    static int64_t size(const BackwardCall& call) {
        return 2 * call.key.size[2] * Panels(call.key.size[3]).columns();
    }
    KeyGradients(float* memory, const BackwardCall& call)
        : key(memory), value(memory + size(call) / 2), columns(Panels(call.key.size[3]).columns()) {}
};

// The parts of a head that several threads computed. The total is ((part 0 + part 1) + part 2) + ... in every case, so
// the bits do not depend on the threads. The thread that begins a head adds up its own parts; slot 0 holds their sum
// when its tasks end, and `included` is their number. Every other part has its own slot.
struct Partials {
    static constexpr bool ZEROED = false;
    float* slots;
    int64_t* included;
    int64_t parts, size;

    void lay(Arena& arena, const BackwardCall& call, int64_t count) {
        const int64_t heads = call.query.size[0] * call.query.size[1];
        parts = count;
        size = KeyGradients::size(call);
        slots = arena.take<float>(parts == 1 ? 0 : heads * parts * size);
        included = arena.take<int64_t>(heads);
    }
    float* slot(int64_t head, int64_t part) const { return slots + (head * parts + part) * size; }
};

inline void add(float* total, const float* part, int64_t size) {
    for (int64_t k = 0; k < size; k += LANES) store(total + k, load(total + k) + load(part + k));
}

template <class Dot>
struct BackwardLayout : BlockLayout<Dot> {
    static constexpr bool ZEROED = true;
    Packed key[MOST_HEADS], value[MOST_HEADS];  // columns are keys: for Q K^T and dO V^T
    Packed key_rows[MOST_HEADS];                // columns are channels: for dS K
    float *accumulated[MOST_HEADS], *total[MOST_HEADS];  // dK and dV of a part, and their sums so far
    Packed query_rows, grad_rows;  // columns are channels, of a block of rows: for dS^T Q and P^T dO
    uint32_t *stacked_probs, *stacked_slopes, *slope_words;  // P and dS of a block, if a word holds two of them
    float* grad_query;
    float* mask_rows;  // (H, N, M), where dS of a sample is added, or nullptr
    bool mask_is_new;

    void lay(Arena& arena, const BackwardCall& call, int64_t group, int64_t parts) {
        const int64_t width = call.query.size[3], keys = call.key.size[2];
        BlockLayout<Dot>::lay(arena, call);
        for (int64_t g = 0; g < group; ++g) {
            key[g] = pack_room<Dot>(arena, keys, width);
            value[g] = pack_room<Dot>(arena, keys, width);
            key_rows[g] = pack_room<Dot>(arena, width, keys);
            accumulated[g] = arena.take<float>(KeyGradients::size(call));
            total[g] = parts == 1 ? accumulated[g] : arena.take<float>(KeyGradients::size(call));
        }
        query_rows = pack_room<Dot>(arena, width, ROW_BLOCK);
        grad_rows = pack_room<Dot>(arena, width, ROW_BLOCK);
        const int64_t words = Dot::DEPTH == 1 ? 0 : ROW_BLOCK * KEY_BLOCK / Dot::DEPTH;
        stacked_probs = arena.take<uint32_t>(words);
        stacked_slopes = arena.take<uint32_t>(words);
        slope_words = arena.take<uint32_t>(words);
        grad_query = arena.take<float>(ROW_BLOCK * key_rows->panels.columns());
    }
};

// The packed operands and sums of one head.
struct HeadOperands {
    const Packed &key, &value, &key_rows;
    KeyGradients to;
};

// The rows of a block, packed as the operand whose columns are channels.
template <class Dot>
void stack_block(const Packed& to, Words from, int64_t rows, const uint32_t* zeros) {
    for (int64_t step = 0; step * Dot::DEPTH < rows; ++step) {
        const uint32_t* pointers[Dot::DEPTH];
        for (int64_t d = 0; d < Dot::DEPTH; ++d) {
            const int64_t r = step * Dot::DEPTH + d;
            pointers[d] = r < rows ? from.data + r * from.row : zeros;
        }
        stack_rows<Dot>(to, step, pointers);
    }
}

template <class Dot>
void backward_rows(const BackwardCall& call, BackwardLayout<Dot>& s, const RowBlock& at, const HeadOperands& head) {
    const KeyGradients& to = head.to;
    const Panels& panels = head.key.panels;
    const RowWords rows = read_rows<Dot>(call, s, at);
    const uint32_t* zeros = s.room + LANES * words_room<Dot>(call.query.size[3]);
    stack_block<Dot>(s.query_rows, rows.queries, at.rows, zeros);
    stack_block<Dot>(s.grad_rows, rows.grads, at.rows, zeros);
    const int64_t row_steps = words_in<Dot>(at.rows), channels = head.key_rows.panels.count;
    std::memset(s.grad_query, 0, at.rows * to.columns * sizeof(float));

    constexpr bool single = Dot::DEPTH == 1;
    const Words probs_down{single ? reinterpret_cast<uint32_t*>(s.probs) : s.stacked_probs, 1, KEY_BLOCK};
    const Words slopes_down{single ? reinterpret_cast<uint32_t*>(s.slopes) : s.stacked_slopes, 1, KEY_BLOCK};
    const Words slopes{single ? reinterpret_cast<uint32_t*>(s.slopes) : s.slope_words, KEY_BLOCK / Dot::DEPTH, 1};
    const int64_t row = call.key.size[2];
    float* const own_rows = s.mask_rows ? s.mask_rows + (at.h * call.query.size[2] + at.first) * row : nullptr;
    for (int64_t panel = 0; panel < panels.count; panel += PANELS_PER_BLOCK) {
        const KeyBlock block(panels, panel, call.key.size[2]);
        const int64_t keys = block.end - block.first, offset = block.first * to.columns;
        // In the layout of the products.
        const auto keep = [&](int64_t r, int64_t j, const Vec* p, const Vec* slope) __attribute__((always_inline)) {
            if constexpr (single) {
                store(s.probs + r * KEY_BLOCK + j, p[0]);
            } else {
                store(s.stacked_probs + r / 2 * KEY_BLOCK + j, Dot::stack(p));
                store(s.stacked_slopes + r / 2 * KEY_BLOCK + j, Dot::stack(slope));
                for (int d = 0; d < Dot::DEPTH; ++d)
                    Dot::words(s.slope_words + ((r + d) * KEY_BLOCK + j) / 2, slope[d]);
            }
        };
        differentiate<Dot>(call, s, at, rows, head.key, head.value, block, single || own_rows, keep);
        if (own_rows)
            add_slopes<Dot>(s, at.rows, block, s.mask_is_new, [&](int64_t r) { return own_rows + r * row; });
        product<Dot, true>(keys, probs_down, s.grad_rows, 0, channels, 0, row_steps, to.value + offset, to.columns);
        product<Dot, true>(keys, slopes_down, s.query_rows, 0, channels, 0, row_steps, to.key + offset, to.columns);
        product<Dot, true>(at.rows, slopes, head.key_rows, 0, channels, block.first / Dot::DEPTH,
                           words_in<Dot>(block.end), s.grad_query, to.columns);
    }
    for (int64_t r = 0; r < at.rows; ++r)
        write_row(call.grad_query, at.b, at.h, at.first + r, s.grad_query + r * to.columns, call.scale);
}

inline void write_key_gradients(const BackwardCall& call, int64_t b, int64_t h, int64_t j, const KeyGradients& from) {
    write_row(call.grad_key, b, h, j, from.key + j * from.columns, __builtin_fabsf(call.scale));
    write_row(call.grad_value, b, h, j, from.value + j * from.columns, 1.0f);
}

// Adds up the heads whose parts several threads computed.
inline void finish_shared_heads(const BackwardCall& call, const Partials& partials) {
    const int64_t heads = call.query.size[1];
    parallel_for(call.query.size[0] * heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; ++head) {
            if (partials.included[head] == partials.parts) continue;
            float* total = partials.slot(head, 0);
            for (int64_t p = partials.included[head]; p < partials.parts; ++p)
                add(total, partials.slot(head, p), partials.size);
            for (int64_t j = 0; j < call.key.size[2]; ++j)
                write_key_gradients(call, head / heads, head % heads, j, KeyGradients(total, call));
        }
    });
}

// Computes dQ of a part's rows, and the part's dK and dV of each head in `to`.
template <class Dot>
void backward_part(const BackwardCall& call, BackwardLayout<Dot>& s, const HeadGroup& group, int64_t first, int64_t last,
                   float* const* to) {
    for (int64_t g = 0; g < group.count; ++g) std::memset(to[g], 0, KeyGradients::size(call) * sizeof(float));
    // Blocks of nearly equal size: adding to dK and dV costs as much for a short block.
    const int64_t blocks = divide_up(last - first, ROW_BLOCK);
    const int64_t rows = round_up(divide_up(last - first, blocks), TILE_ROWS);
    for (int64_t i = first; i < last; i += rows)
        for (int64_t g = 0; g < group.count; ++g)
            backward_rows<Dot>(
                call, s, RowBlock{group.b, group.first + g, i, last - i < rows ? last - i : rows},
                HeadOperands{s.key[g], s.value[g], s.key_rows[g], KeyGradients(to[g], call)});
}

// Whether this pass adds up the mask's gradient too. A thread then computes all samples that share the mask of a head, in
// order. The separate pass of mask_gradient.h adds in the same order and has more tasks.
inline bool adds_mask_gradient(const BackwardCall& call, int64_t parts) {
    const int64_t *to = call.grad_mask.size, batch = call.query.size[0], heads = call.query.size[1];
    if (!call.grad_mask.data || call.one_row || to[1] != heads) return false;
    return to[0] == batch || (parts == 1 && to[0] * heads >= threads());
}

template <class Dot>
void backward(const BackwardCall& call) {
    const int64_t batch = call.query.size[0];
    if (batch == 0) {
        if (call.grad_mask.data) mask_gradient<Dot>(call);  // zeros
        return;
    }
    const int64_t length = call.query.size[2], keys = call.key.size[2], size = KeyGradients::size(call);
    const Parts parts = backward_parts(call);
    const int64_t bytes = 3 * sizeof(uint32_t) * words_in<Dot>(keys) * Panels(call.key.size[3]).columns() +
                          (parts.count == 1 ? 1 : 2) * size * sizeof(float);
    const bool adds_mask = adds_mask_gradient(call, parts.count);
    if (call.grad_mask.data && !adds_mask) mask_gradient<Dot>(call);
    // A task has every `apart`-th sample: one, unless they share a mask whose gradient is added up here.
    const int64_t apart = adds_mask ? call.grad_mask.size[0] : batch, of_sample = call.query.size[1] * length * keys;
    float* const grad_mask = adds_mask ? static_cast<float*>(call.grad_mask.data) : nullptr;
    const Tasks tasks(apart, call.query.size[1], parts.count, bytes, BACKWARD_CACHE);
    Scratch<Partials> partials(call, parts.count);
    parallel_for(tasks.count, 1, [&](int64_t begin, int64_t end) {
        Scratch<BackwardLayout<Dot>> s(call, tasks.group, parts.count);
        bool from_the_start = false;
        for (int64_t task = begin; task < end; ++task) {
            HeadGroup group = tasks.heads_of(task);
            const int64_t part = task % parts.count;
            s.mask_rows = grad_mask ? grad_mask + group.b * of_sample : nullptr;
            for (; group.b < batch; group.b += apart) {
                s.mask_is_new = group.b < apart;
                if (task == begin || part == 0) {
                    pack_transposed<Dot>(s.key, call.key, group, s.room, s.spare);
                    pack_transposed<Dot>(s.value, call.value, group, s.room, s.spare);
                    pack_straight<Dot>(s.key_rows, call.key, group, s.room, s.spare);
                    from_the_start = part == 0;
                }
                // The total starts as the first part.
                backward_part<Dot>(call, s, group, part * parts.rows, parts.end(part, length),
                                   part == 0 ? s.total : s.accumulated);
                const bool done = part + 1 == parts.count;
                for (int64_t g = 0; g < group.count; ++g) {
                    const int64_t head = group.b * call.query.size[1] + group.first + g;
                    if (!from_the_start) {
                        std::memcpy(partials.slot(head, part), s.accumulated[g], size * sizeof(float));
                        continue;
                    }
                    if (part > 0) add(s.total[g], s.accumulated[g], size);
                    if (done || task + 1 == end) partials.included[head] = part + 1;
                    if (!done && task + 1 == end)
                        std::memcpy(partials.slot(head, 0), s.total[g], size * sizeof(float));
                }
                for (int64_t j = 0; from_the_start && done && j < keys; ++j)
                    for (int64_t g = 0; g < group.count; ++g)
                        write_key_gradients(call, group.b, group.first + g, j, KeyGradients(s.total[g], call));
            }
        }
    });
    if (parts.count > 1) finish_shared_heads(call, partials);
}

}  // namespace
}  // namespace rsattn
