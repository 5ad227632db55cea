// The residual: Y = projected + merge(O_h*), and its transpose. They move memory and add.
#pragma once
#include "convert.h"
#include "scratch.h"

namespace rsattn {
namespace {

constexpr int64_t NUMBERS_PER_TASK = 1 << 15;  // fewer are not worth waking a thread for

struct EpilogueLayout {
    static constexpr bool ZEROED = false;
    float *row, *best;
    void lay(Arena& arena, int64_t dim, int64_t width) {
        row = arena.take<float>(dim);
        best = arena.take<float>(width);
    }
};

// The channels [first, first + count) of a view.
inline View channels(View view, int64_t first, int64_t count) {
    view.data = static_cast<char*>(view.data) + first * view.stride[3] * size_of(view.type);
    view.size[3] = count;
    return view;
}

inline void round_to(Type type, float* row, int64_t count) {
    for (int64_t e = 0; e < count; ++e) {
        if (type == Type::float16) row[e] = Float16(row[e]);
        if (type == Type::bfloat16) row[e] = BFloat16(row[e]);
    }
}

template <class T>
void add_repeated(T* out, const T* projected, const float* best, int64_t width, int64_t dim) {
    for (int64_t c = 0; c < dim; c += width)
        for (int64_t e = 0; e < width; e += LANES) narrow(out + c + e, widen(projected + c + e) + load(best + e));
}

// out row <- projected row + `best` repeated
inline void add_repeated(const View& projected, const View& out, int64_t b, int64_t i, const float* best, int64_t width,
                         float* row) {
    const int64_t dim = projected.size[3];
    if (projected.stride[3] == 1 && out.stride[3] == 1 && width % LANES == 0) {
        char *to = row_at(out, b, 0, i), *from = row_at(projected, b, 0, i);
        switch (projected.type) {
            case Type::float32:
                return add_repeated(reinterpret_cast<float*>(to), reinterpret_cast<float*>(from), best, width, dim);
            case Type::float16:
                return add_repeated(reinterpret_cast<Float16*>(to), reinterpret_cast<Float16*>(from), best, width, dim);
            default:
                return add_repeated(reinterpret_cast<BFloat16*>(to), reinterpret_cast<BFloat16*>(from), best, width, dim);
        }
    }
    read_row(row, projected, b, 0, i);
    for (int64_t c = 0; c < dim; c += width)
        for (int64_t e = 0; e < width; ++e) row[c + e] += best[e];
    write_row(out, b, 0, i, row, 1.0f);
}

inline void add_best_head(const EpilogueCall& call) {
    const int64_t length = call.projected.size[2], dim = call.projected.size[3], width = call.output.size[3];
    const bool in_place = call.out.data == call.projected.data;
    parallel_for(call.projected.size[0] * length, 1 + NUMBERS_PER_TASK / dim, [&](int64_t begin, int64_t end) {
        Scratch<EpilogueLayout> s(dim, width);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / length, i = task % length, h = call.best_head[b];
            read_row(s.best, call.output, b, h, i);
            if (call.output.type != call.projected.type) round_to(call.projected.type, s.best, width);
            if (call.tile) {
                add_repeated(call.projected, call.out, b, i, s.best, width, s.row);
                continue;
            }
            if (!in_place) {
                read_row(s.row, call.projected, b, 0, i);
                write_row(call.out, b, 0, i, s.row, 1.0f);
            }
            add_repeated(channels(call.projected, h * width, width), channels(call.out, h * width, width), b, i, s.best,
                         width, s.row);
        }
    });
}

inline void best_head_gradient(const EpilogueGradientCall& call) {
    const int64_t length = call.grad.size[2], dim = call.grad.size[3], width = call.grad_best.size[3];
    parallel_for(call.grad.size[0] * length, 1 + NUMBERS_PER_TASK / dim, [&](int64_t begin, int64_t end) {
        Scratch<EpilogueLayout> s(dim, width);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / length, i = task % length, h = call.best_head[b];
            if (call.tile) {
                read_row(s.row, call.grad, b, 0, i);
                for (int64_t c = width; c < dim; c += width)
                    for (int64_t e = 0; e < width; ++e) s.row[e] += s.row[c + e];
            } else {
                read_row(s.row, channels(call.grad, h * width, width), b, 0, i);
            }
            write_row(call.grad_best, b, 0, i, s.row, 1.0f);
        }
    });
}

}  // namespace
}  // namespace rsattn
