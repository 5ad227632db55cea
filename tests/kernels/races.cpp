// Every kernel from several callers at once, each on several threads, for the thread sanitizer (.ci/sanitize). It uses
// std::thread, because the sanitizer does not support PyTorch's OpenMP and would report false races.
//
//   g++ -g -O1 -std=gnu++17 -fsanitize=thread -Wno-psabi -DRSATTN_VARIANT=portable -Icsrc/cpu tests/kernels/races.cpp
//       csrc/cpu/variant.cpp -o /tmp/races && /tmp/races
//
// Exits with 1 if results differ from those of a single thread; the sanitizer exits with 66 for a race.
#include <cstdio>
#include <cstring>
#include <thread>

#include "tensor.h"

#define RSATTN_JOIN_OF(a, b) a##b
#define RSATTN_JOIN(a, b) RSATTN_JOIN_OF(a, b)
#define KERNELS RSATTN_JOIN(kernels_, RSATTN_VARIANT)

namespace rsattn {
extern const Kernels KERNELS;
thread_local int64_t count = 1;  // of threads of the caller

void parallel(int64_t tasks, int64_t grain, const void* context, Body body) {
    const int64_t each = std::max(grain, (tasks + count - 1) / count);
    std::vector<std::thread> others;
    for (int64_t first = each; first < tasks; first += each)
        others.emplace_back(body, context, first, std::min(first + each, tasks));
    if (tasks > 0) body(context, 0, std::min(each, tasks));
    for (std::thread& other : others) other.join();
}
int64_t threads() { return count; }
}  // namespace rsattn
using namespace rsattn;

struct Shape {
    int64_t queries, keys, width;
    Norm norm;
    bool per_sample, dropout, one_row;  // whether the mask has one row for all queries
};

using Results = std::vector<std::vector<float>>;

// The inputs, which all callers share.
struct Inputs {
    Tensor query, key, value, mask, grad, grad_best, projected, gamma;
    uint64_t seed = 7;
    explicit Inputs(const Shape& s)
        : query(H, s.queries, s.width), key(H, s.keys, s.width), value(H, s.keys, s.width),
          mask(H, s.queries, s.keys), grad(H, s.queries, s.width), grad_best(1, s.queries, s.width),
          projected(1, s.queries, H * s.width), gamma(1, 1, H * s.width) {
        std::mt19937 generator;
        for (Tensor* tensor : {&query, &key, &value, &mask, &grad, &grad_best, &projected, &gamma})
            tensor->fill(generator);
        mask.view.size[0] = 1;  // all samples share it
        if (s.one_row) mask.view.stride[2] = 0;
    }
};

Results call(const Shape& s, const Inputs& in) {
    Tensor output(H, s.queries, s.width), grad_query(H, s.queries, s.width), grad_key(H, s.keys, s.width);
    Tensor grad_value(H, s.keys, s.width), joined(1, s.queries, H * s.width), folded(1, s.queries, s.width);
    Tensor gated(1, s.queries, s.width), grad_gamma(1, 1, H * s.width);
    std::vector<float> statistics(B * H * 2 * s.queries), norms(B * H), received(B * H * s.keys), sums(B * H * s.keys);
    std::vector<int64_t> best(B);

    ForwardCall forward;
    forward.query = in.query.view, forward.key = in.key.view, forward.value = in.value.view;
    forward.mask = in.mask.view, forward.received = received.data();
    forward.output = output.view, forward.scale = 0.15f, forward.statistics = statistics.data();
    forward.norms = norms.data(), forward.best_head = best.data();
    forward.norm = s.norm, forward.per_sample = s.per_sample;
    if (s.dropout) forward.dropout = {true, &in.seed, 1u << 30, 4.0f / 3.0f};
    KERNELS.forward(forward);
    ForwardCall alone;
    alone.query = in.query.view, alone.key = in.key.view, alone.mask = in.mask.view, alone.scale = 0.15f;
    alone.received = sums.data();
    KERNELS.forward(alone);

    BackwardCall backward;
    static_cast<Attention&>(backward) = forward;
    backward.grad_output = in.grad.view, backward.grad_best = in.grad_best.view;
    backward.grad_query = grad_query.view, backward.grad_key = grad_key.view, backward.grad_value = grad_value.view;
    Tensor grad_mask(H, s.one_row ? 1 : s.queries, s.keys);
    backward.grad_mask = grad_mask.view, backward.grad_mask.size[0] = 1, backward.one_row = s.one_row;
    KERNELS.backward(backward);

    EpilogueCall join;
    join.projected = in.projected.view, join.output = output.view, join.out = joined.view, join.gamma = in.gamma.view;
    join.best_head = best.data(), join.tile = s.per_sample;
    KERNELS.add_best_head(join);
    EpilogueGradientCall fold;
    fold.grad = in.projected.view, fold.grad_best = folded.view;
    fold.best_head = best.data(), fold.tile = s.per_sample;
    KERNELS.best_head_gradient(fold);
    GateGradientsCall gate;
    gate.grad = in.projected.view, gate.output = output.view, gate.gamma = in.gamma.view;
    gate.grad_best = gated.view, gate.grad_gamma = grad_gamma.view;
    gate.best_head = best.data(), gate.tile = s.per_sample;
    KERNELS.gate_gradients(gate);
    return {output.data, norms, statistics, received, sums, grad_mask.data,
            grad_query.data, grad_key.data, grad_value.data,
            joined.data, folded.data, gated.data, grad_gamma.data};
}

bool same_bits(const Results& a, const Results& b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
    return true;
}

int main() {
    int status = 0;
    // Long heads are divided into parts, short ones are distributed whole.
    for (const Shape& s : {Shape{260, 70, 32, Norm::induced, true, false, false},
                           Shape{7, 33, 17, Norm::entrywise, false, true, false},
                           Shape{200, 200, 16, Norm::confidence, true, true, true}}) {
        const Inputs inputs(s);
        const Results alone = call(s, inputs);
        bool same[3] = {};
        std::vector<std::thread> callers;
        for (int64_t c = 0; c < 3; ++c)
            callers.emplace_back([&, c] {
                count = 2 + c;
                same[c] = same_bits(call(s, inputs), alone);
            });
        for (std::thread& caller : callers) caller.join();
        for (const bool right : same)
            if (!right) status = 1;
        std::printf("N %lld, M %lld, E %lld: %s\n", (long long)s.queries, (long long)s.keys, (long long)s.width,
                    status ? "other bits than one thread's" : "the same bits");
    }
    return status;
}
