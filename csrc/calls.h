// A call of the attention as plain structs: the interface between the operators, which use PyTorch, and the kernels of
// all backends in this folder, which do not.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rsattn {

enum class Type : int32_t { float32, float16, bfloat16, float64, boolean };
enum class Norm { induced, entrywise, confidence };

inline int64_t size_of(Type type) {
    switch (type) {
        case Type::float64: return 8;
        case Type::float32: return 4;
        case Type::boolean: return 1;
        default: return 2;
    }
}

// A view of up to four dimensions. Sizes and strides are in elements.
struct View {
    void* data = nullptr;
    Type type = Type::float32;
    int64_t size[4] = {1, 1, 1, 1};
    int64_t stride[4] = {0, 0, 0, 0};
};

struct Dropout {
    bool on = false;
    const uint64_t* seed = nullptr;  // one word, on the device of the tensors
    uint32_t threshold = 0;          // the smallest Philox word that is kept
    float scale = 1.0f;              // the factor of a kept probability
};

struct Attention {
    View query, key, value;  // (B, H, N, E), (B, H, M, E), (B, H, M, E)
    View mask;               // (repeat, H, N, M), whose entry b % repeat is that of sample b; or data == nullptr
    Dropout dropout;
    float scale = 1.0f;
    View output;                   // (B, H, N, E)
    int64_t* best_head = nullptr;  // (B,)
    // (B, H, 2, N): the largest score of each row, and log2 of the sum of exponentials relative to it; 0 and +inf if
    // the row sees no key. Scores are unscaled if `scale` is applied in the exponential, otherwise in log2 units. The
    // log-sum-exp alone is too inexact: at 2^20, half an ulp is 4 % of a probability.
    float* statistics = nullptr;
};

struct ForwardCall : Attention {
    Norm norm = Norm::induced;
    bool per_sample = true;     // scope="sample"; else "batch"
    float* norms = nullptr;     // (B, H)
    float* received = nullptr;  // (B, H, M), the column sums of P before dropout, or nullptr
    // Whether only `received` is computed. Then there are no value, output, best_head, statistics, norms and dropout.
    bool alone() const { return output.data == nullptr; }
};

struct Upstream : Attention {
    View grad_output;  // (B, H, N, E)
    View grad_best;    // (B, 1, N, E) or data == nullptr
};

struct MaskGradientCall : Upstream {
    // (repeat, H or 1, N or 1, M) float32, dense: the mask's gradient, summed over the samples that share an entry, and
    // over the heads and the queries where there is one for all. On a GPU (slices * repeat, ...): partial sums.
    View grad_mask;
    bool one_row = false;  // whether the mask has one row for all queries
};

struct BackwardCall : MaskGradientCall {  // its grad_mask has data == nullptr if it is not wanted, and on a GPU always
    View grad_query, grad_key, grad_value;
};

struct Epilogue {
    const int64_t* best_head = nullptr;
    bool tile = true;  // merge="tile"; else "slot"
};

struct EpilogueCall : Epilogue {
    View projected;  // (B, 1, N, D)
    View output;     // (B, H, N, E)
    View out;        // (B, 1, N, D), may be `projected`
    View gamma;      // (1, 1, 1, D) or data == nullptr
};

struct EpilogueGradientCall : Epilogue {
    View grad;       // (B, 1, N, D)
    View grad_best;  // (B, 1, N, E)
};

struct GateGradientsCall : Epilogue {
    View grad;        // (B, 1, N, D)
    View output;      // (B, H, N, E)
    View gamma;       // (1, 1, 1, D)
    View grad_best;   // (B, 1, N, E)
    View grad_gamma;  // (1, 1, 1, D)
};

}  // namespace rsattn
