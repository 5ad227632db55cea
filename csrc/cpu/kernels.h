// What crosses between the operators (operators.cpp, which knows PyTorch) and the kernels (variant.cpp, compiled
// once for each instruction set, which know none of it): plain structs and one table of functions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rsattn {

enum class Type : int32_t { float32, float16, bfloat16, float64, boolean };
// `none` ranks no heads: what ranking costs is the difference. No backend asks for it.
enum class Norm : int64_t { induced, entrywise, confidence, none };

// A view of up to four dimensions; sizes and strides in elements.
struct View {
    void* data = nullptr;
    Type type = Type::float32;
    int64_t size[4] = {1, 1, 1, 1};
    int64_t stride[4] = {0, 0, 0, 0};
};

// Runs body(context, begin, end) over parts of [0, tasks) on PyTorch's threads, at least `grain` tasks each.
using Body = void (*)(const void* context, int64_t begin, int64_t end);
void parallel(int64_t tasks, int64_t grain, const void* context, Body body);
int64_t threads();

template <class F>
void parallel_for(int64_t tasks, int64_t grain, const F& f) {
    parallel(tasks, grain, &f, [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
    });
}

struct Dropout {
    bool on = false;
    uint64_t seed = 0;
    uint32_t threshold = 0;  // the smallest Philox word that is kept
    float scale = 1.0f;      // what a kept probability is multiplied by
};

struct Attention {
    View query, key, value;  // (B, H, N, E), (B, H, M, E), (B, H, M, E)
    View mask;               // (B, H, N, M) or data == nullptr
    Dropout dropout;
    float scale = 1.0f;
    View output;                   // (B, H, N, E)
    int64_t* best_head = nullptr;  // (B,)
    float* logsumexp = nullptr;    // (B, H, N), in log2 units
};

struct ForwardCall : Attention {
    Norm norm = Norm::induced;
    bool per_sample = true;  // scope="sample"; else "batch"
    float* norms = nullptr;  // (B, H)
};

struct BackwardCall : Attention {
    View grad_output;  // (B, H, N, E)
    View grad_best;    // (B, 1, N, E) or data == nullptr
    View grad_query, grad_key, grad_value;
};

struct EpilogueCall {
    View projected;  // (B, 1, N, D)
    View output;     // (B, H, N, E)
    View out;        // (B, 1, N, D), may be `projected`
    const int64_t* best_head = nullptr;
    bool tile = true;  // merge="tile"; else "slot"
};

struct EpilogueGradientCall {
    View grad;       // (B, 1, N, D)
    View grad_best;  // (B, 1, N, E)
    const int64_t* best_head = nullptr;
    bool tile = true;
};

struct Kernels {
    const char* name;
    void (*forward)(const ForwardCall&);
    void (*backward)(const BackwardCall&);
    void (*add_best_head)(const EpilogueCall&);
    void (*best_head_gradient)(const EpilogueGradientCall&);
};

}  // namespace rsattn
