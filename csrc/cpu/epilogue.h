// The residual: Y = projected + gamma * merge(O_h*), or without the gate gamma.
#pragma once
#include "convert.h"
#include "scratch.h"

namespace rsattn {
namespace {

constexpr int64_t NUMBERS_PER_TASK = 1 << 15;  // a smaller task is not worth a thread
constexpr int TOKENS = 4;                      // processed together, so that gamma is loaded once for all

struct EpilogueLayout {
    static constexpr bool ZEROED = false;
    float *row, *best[TOKENS], *gamma;
    void lay(Arena& arena, int64_t dim, int64_t width) {
        row = arena.take<float>(dim);
        for (float*& of_token : best) of_token = arena.take<float>(width);
        gamma = arena.take<float>(dim);
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

// The rows (b, 0, i), (b, 0, i + 1), ... of a view with contiguous channels.
template <class T>
struct Rows {
    T* first;
    int64_t stride;
    Rows(const View& view, int64_t b, int64_t i)
        : first(reinterpret_cast<T*>(row_at(view, b, 0, i))), stride(view.stride[2]) {}
    T* operator[](int64_t token) const { return first + token * stride; }
};

// Calls f with a value of the view's type.
template <class F>
void with_type(const View& view, const F& f) {
    switch (view.type) {
        case Type::float32: return f(float());
        case Type::float16: return f(Float16());
        default: return f(BFloat16());
    }
}

template <bool GATED, int COUNT, class T>
void add_repeated(Rows<T> out, Rows<T> projected, const float* const* best, const float* gamma, int64_t width,
                  int64_t dim) {
    for (int64_t c = 0; c < dim; c += width)
        for (int64_t e = 0; e < width; e += LANES) {
            const Vec gate = GATED ? load(gamma + c + e) : Vec{};
            for (int t = 0; t < COUNT; ++t) {
                Vec added = load(best[t] + e);
                if (GATED) added *= gate;
                narrow(out[t] + c + e, widen(projected[t] + c + e) + added);
            }
        }
}

// out rows <- projected rows + gamma * `best` repeated, of TOKENS tokens or one
template <bool GATED>
void add_repeated(const View& projected, const View& out, int64_t b, int64_t i, int64_t count, const float* gamma,
                  int64_t width, const EpilogueLayout& s) {
    const int64_t dim = projected.size[3];
    if (projected.stride[3] == 1 && out.stride[3] == 1 && width % LANES == 0) {
        return with_type(projected, [&](auto number) {
            const Rows<decltype(number)> to(out, b, i), from(projected, b, i);
            count == TOKENS ? add_repeated<GATED, TOKENS>(to, from, s.best, gamma, width, dim)
                            : add_repeated<GATED, 1>(to, from, s.best, gamma, width, dim);
        });
    }
    for (int64_t t = 0; t < count; ++t) {
        read_row(s.row, projected, b, 0, i + t);
        for (int64_t c = 0; c < dim; c += width)
            for (int64_t e = 0; e < width; ++e) s.row[c + e] += GATED ? gamma[c + e] * s.best[t][e] : s.best[t][e];
        write_row(out, b, 0, i + t, s.row, 1.0f);
    }
}

template <bool GATED>
void add_best_head(const EpilogueCall& call) {
    const int64_t length = call.projected.size[2], dim = call.projected.size[3], width = call.output.size[3];
    const bool in_place = call.out.data == call.projected.data;
    parallel_for(call.projected.size[0] * length, 1 + NUMBERS_PER_TASK / dim, [&](int64_t begin, int64_t end) {
        Scratch<EpilogueLayout> s(dim, width);
        if (GATED) read_row(s.gamma, call.gamma, 0, 0, 0);
        for (int64_t task = begin, count; task < end; task += count) {
            const int64_t b = task / length, i = task % length, h = call.best_head[b];
            count = i + TOKENS <= length && task + TOKENS <= end ? TOKENS : 1;
            for (int64_t t = 0; t < count; ++t) {
                read_row(s.best[t], call.output, b, h, i + t);
                // As in the reference: a gated sum is rounded once, at the end.
                if (!GATED && call.output.type != call.projected.type) round_to(call.projected.type, s.best[t], width);
                if (!call.tile && !in_place) {
                    read_row(s.row, call.projected, b, 0, i + t);
                    write_row(call.out, b, 0, i + t, s.row, 1.0f);
                }
            }
            const int64_t own = call.tile ? 0 : h * width, added = call.tile ? dim : width;
            add_repeated<GATED>(channels(call.projected, own, added), channels(call.out, own, added), b, i, count,
                                s.gamma + own, width, s);
        }
    });
}

inline void choose_add_best_head(const EpilogueCall& call) {
    call.gamma.data ? add_best_head<true>(call) : add_best_head<false>(call);
}

}  // namespace
}  // namespace rsattn
