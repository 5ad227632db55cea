// The gradients of Y = projected + gamma * merge(O_h*) in one pass over dY: merge^T(gamma * dY), and d gamma, the sum
// of dY * merge(O_h*) over samples and tokens. Without a gate only the first, with gamma = 1.
#pragma once
#include "epilogue.h"
#include "pack.h"

namespace rsattn {
namespace {

constexpr int64_t LEAST_TOKENS = 64, MOST_PARTS = 256;  // the fewest tokens of a part, the most parts

struct EpilogueBackwardLayout {
    static constexpr bool ZEROED = false;
    float *grad[TOKENS], *best[TOKENS], *grad_best[TOKENS], *gamma;
    void lay(Arena& arena, int64_t dim, int64_t width) {
        for (int t = 0; t < TOKENS; ++t) {
            grad[t] = arena.take<float>(dim);
            best[t] = arena.take<float>(width);
            grad_best[t] = arena.take<float>(width);
        }
        gamma = arena.take<float>(dim);
    }
};

// d gamma of each part of the tokens.
struct GatePartials {
    static constexpr bool ZEROED = false;
    float* sums;
    void lay(Arena& arena, int64_t parts, int64_t dim) { sums = arena.take<float>(parts * dim); }
};

// grad_best <- the sum of the repeats of gamma * grad; grad_gamma += grad * `best` repeated, in the order of the
// tokens. The sums of COUNT tokens stay in registers, and d gamma is loaded and stored once for all of them.
template <bool GATED, int COUNT, class R>
void fold_tokens(const R& grad, const float* gamma, const EpilogueBackwardLayout& s, float* grad_gamma, int64_t width,
                 int64_t dim) {
    for (int64_t e = 0; e < width; e += LANES) {
        Vec best[COUNT], total[COUNT];
        for (int t = 0; t < COUNT; ++t) {
            best[t] = GATED ? load(s.best[t] + e) : Vec{};
            total[t] = Vec{};
        }
        for (int64_t c = e; c < dim; c += width) {
            const Vec gate = GATED ? load(gamma + c) : Vec{};
            Vec sum = GATED ? load(grad_gamma + c) : Vec{};
            for (int t = 0; t < COUNT; ++t) {
                const Vec g = widen(grad[t] + c);
                total[t] += GATED ? gate * g : g;
                if (GATED) sum += best[t] * g;
            }
            if (GATED) store(grad_gamma + c, sum);
        }
        for (int t = 0; t < COUNT; ++t) store(s.grad_best[t] + e, total[t]);
    }
}

// The same for one token, if the width is not a multiple of the vector size.
template <bool GATED>
void fold_token(const float* gamma, const EpilogueBackwardLayout& s, float* grad_gamma, int64_t width, int64_t dim) {
    for (int64_t e = 0; e < width; ++e) {
        float total = 0.0f;
        for (int64_t c = e; c < dim; c += width) {
            const float g = s.grad[0][c];
            total += GATED ? gamma[c] * g : g;
            if (GATED) grad_gamma[c] += s.best[0][e] * g;
        }
        s.grad_best[0][e] = total;
    }
}

// Tokens [first, last), counted over all samples: their rows of grad_best, and their part of d gamma.
template <bool GATED>
void fold(const GateGradientsCall& call, int64_t first, int64_t last, const EpilogueBackwardLayout& s,
          float* grad_gamma) {
    const int64_t length = call.grad.size[2], width = call.grad_best.size[3];
    const int64_t dim = call.tile ? call.grad.size[3] : width;
    for (int64_t token = first, count; token < last; token += count) {
        const int64_t b = token / length, i = token % length, h = call.best_head[b], own = call.tile ? 0 : h * width;
        count = width % LANES == 0 && i + TOKENS <= length && token + TOKENS <= last ? TOKENS : 1;
        const View grad = channels(call.grad, own, dim);
        const auto vectors = [&](const auto& rows) {
            count == TOKENS ? fold_tokens<GATED, TOKENS>(rows, s.gamma + own, s, grad_gamma + own, width, dim)
                            : fold_tokens<GATED, 1>(rows, s.gamma + own, s, grad_gamma + own, width, dim);
        };
        if (GATED)
            for (int64_t t = 0; t < count; ++t) read_row(s.best[t], call.output, b, h, i + t);
        if (grad.stride[3] == 1 && width % LANES == 0) {
            with_type(grad, [&](auto number) { vectors(Rows<decltype(number)>(grad, b, i)); });
        } else {
            for (int64_t t = 0; t < count; ++t) read_row(s.grad[t], grad, b, 0, i + t);
            width % LANES == 0 ? vectors(s.grad) : fold_token<GATED>(s.gamma + own, s, grad_gamma + own, width, dim);
        }
        for (int64_t t = 0; t < count; ++t) write_row(call.grad_best, b, 0, i + t, s.grad_best[t], 1.0f);
    }
}

inline void best_head_gradient(const EpilogueGradientCall& call) {
    GateGradientsCall ungated;
    ungated.grad = call.grad;
    ungated.grad_best = call.grad_best;
    ungated.best_head = call.best_head;
    ungated.tile = call.tile;
    const int64_t dim = call.grad.size[3];
    parallel_for(call.grad.size[0] * call.grad.size[2], 1 + NUMBERS_PER_TASK / dim, [&](int64_t begin, int64_t end) {
        Scratch<EpilogueBackwardLayout> s(dim, call.grad_best.size[3]);
        fold<false>(ungated, begin, end, s, s.gamma);
    });
}

inline void gate_gradients(const GateGradientsCall& call) {
    const int64_t tokens = call.grad.size[0] * call.grad.size[2], dim = call.grad.size[3];
    // The parts, and so the order of the sum, do not depend on the number of threads.
    const int64_t wanted = divide_up(tokens, MOST_PARTS), rows = wanted < LEAST_TOKENS ? LEAST_TOKENS : wanted;
    const int64_t parts = divide_up(tokens, rows);
    Scratch<GatePartials> partials(parts > 0 ? parts : 1, dim);
    if (parts == 0) std::memset(partials.sums, 0, size_t(dim) * sizeof(float));
    parallel_for(parts, 1 + NUMBERS_PER_TASK / (dim * rows), [&](int64_t begin, int64_t end) {
        Scratch<EpilogueBackwardLayout> s(dim, call.grad_best.size[3]);
        read_row(s.gamma, call.gamma, 0, 0, 0);
        for (int64_t part = begin; part < end; ++part) {
            const int64_t last = (part + 1) * rows < tokens ? (part + 1) * rows : tokens;
            float* sums = partials.sums + part * dim;
            std::memset(sums, 0, size_t(dim) * sizeof(float));
            fold<true>(call, part * rows, last, s, sums);
        }
    });
    parallel_for(dim, 1 + NUMBERS_PER_TASK / (1 + parts), [&](int64_t begin, int64_t end) {
        float* total = partials.sums + begin;  // the first part
        for (int64_t part = 1; part < parts; ++part)
            for (int64_t c = 0; c < end - begin; ++c) total[c] += partials.sums[part * dim + begin + c];
        write_row(channels(call.grad_gamma, begin, end - begin), 0, 0, 0, total, 1.0f);
    });
}

}  // namespace
}  // namespace rsattn
