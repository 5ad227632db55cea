// The operators rsattn_C::cpu_*: tensors to plain views, the kernels of one instruction set, PyTorch's threads.
// Only PyTorch's stable ABI is used, so one build serves every PyTorch from 2.10 on. Shapes, dtypes and choices have
// been checked by rsattn/contract.py and rsattn/dispatch.py; what is checked here is what a wrong caller could crash.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace rsattn {

#define RSATTN_DECLARE(name) extern const Kernels kernels_##name;
RSATTN_DECLARE(portable)
#if defined(RSATTN_X86)
RSATTN_DECLARE(avx2)
RSATTN_DECLARE(avx512)
RSATTN_DECLARE(avx512bf16)
#endif

void parallel(int64_t tasks, int64_t grain, const void* context, Body body) {
    torch::stable::parallel_for(0, tasks, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t threads() { return torch::stable::get_num_threads(); }

namespace {

// Fastest first, of those this processor can run.
std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(RSATTN_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&kernels_avx512bf16);
    if (avx512) found.push_back(&kernels_avx512);
    if (avx2) found.push_back(&kernels_avx2);
#endif
    found.push_back(&kernels_portable);
    return found;
}

std::string variants() {
    std::string names;
    for (const Kernels* kernels : usable()) names += (names.empty() ? "" : " ") + std::string(kernels->name);
    return names;
}

const Kernels& kernels_named(const std::string& name) {
    static const std::vector<const Kernels*> found = usable();
    for (const Kernels* kernels : found)
        if (kernels->name == name) return *kernels;
    STD_TORCH_CHECK(false, "this processor has no '", name, "'; it can run: ", variants());
}

Type type_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return Type::float32;
        case ScalarType::Half: return Type::float16;
        case ScalarType::BFloat16: return Type::bfloat16;
        case ScalarType::Double: return Type::float64;
        case ScalarType::Bool: return Type::boolean;
        default: STD_TORCH_CHECK(false, "rsattn's CPU kernels take no tensor of this dtype");
    }
}

View view_of(const Tensor& tensor, bool computed = true) {
    STD_TORCH_CHECK(tensor.is_cpu(), "rsattn's CPU kernels take tensors on the CPU");
    STD_TORCH_CHECK(tensor.dim() == 3 || tensor.dim() == 4, "expected a tensor of 3 or 4 dimensions");
    View view;
    view.data = tensor.data_ptr();
    view.type = type_of(tensor);
    STD_TORCH_CHECK(!computed || (view.type != Type::float64 && view.type != Type::boolean),
                    "rsattn's CPU kernels compute in float32, bfloat16 and float16");
    for (int64_t d = 0, to = 0; d < tensor.dim(); ++d, ++to) {
        if (d == 1 && tensor.dim() == 3) ++to;  // (B, N, D) is (B, 1, N, D)
        view.size[to] = tensor.size(d);
        view.stride[to] = tensor.stride(d);
    }
    return view;
}

template <class T>
T* dense(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), "expected a contiguous tensor on the CPU");
    return static_cast<T*>(tensor.data_ptr());
}

void describe(Attention& call, const Tensor& query, const Tensor& key, const Tensor& value,
              const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, double dropout_p, double scale,
              const Tensor& output, const Tensor& best_head, const Tensor& logsumexp) {
    call.query = view_of(query);
    call.key = view_of(key);
    call.value = view_of(value);
    call.output = view_of(output);
    if (mask) call.mask = view_of(*mask, false);
    if (seed) {
        // As rsattn/philox.py: threshold() and keep_scale().
        const double words = std::nearbyint(dropout_p * 4294967296.0);
        call.dropout.on = true;
        call.dropout.seed = *dense<uint64_t>(*seed);
        call.dropout.threshold = words > 4294967295.0 ? 4294967295u : uint32_t(words);
        call.dropout.scale = dropout_p >= 1.0 ? 0.0f : float(1.0 / (1.0 - dropout_p));
    }
    call.scale = float(scale);
    call.best_head = dense<int64_t>(best_head);
    call.logsumexp = dense<float>(logsumexp);
}

void forward(Tensor query, Tensor key, Tensor value, std::optional<Tensor> mask, std::optional<Tensor> seed,
             double dropout_p, double scale, int64_t norm, bool per_sample, std::string variant, Tensor output,
             Tensor norms, Tensor best_head, Tensor logsumexp) {
    ForwardCall call;
    describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, logsumexp);
    call.norm = Norm(norm);
    call.per_sample = per_sample;
    call.norms = dense<float>(norms);
    kernels_named(variant).forward(call);
}

void backward(Tensor grad_output, std::optional<Tensor> grad_best, Tensor query, Tensor key, Tensor value,
              std::optional<Tensor> mask, std::optional<Tensor> seed, Tensor output, Tensor best_head, Tensor logsumexp,
              double dropout_p, double scale, std::string variant, Tensor grad_query, Tensor grad_key,
              Tensor grad_value) {
    BackwardCall call;
    describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, logsumexp);
    call.grad_output = view_of(grad_output);
    if (grad_best) call.grad_best = view_of(*grad_best);
    call.grad_query = view_of(grad_query);
    call.grad_key = view_of(grad_key);
    call.grad_value = view_of(grad_value);
    kernels_named(variant).backward(call);
}

void add_best_head(Tensor projected, Tensor output, Tensor best_head, bool tile, std::string variant, Tensor out) {
    const EpilogueCall call{view_of(projected), view_of(output), view_of(out), dense<int64_t>(best_head), tile};
    kernels_named(variant).add_best_head(call);
}

void best_head_gradient(Tensor grad, Tensor best_head, bool tile, std::string variant, Tensor grad_best) {
    const EpilogueGradientCall call{view_of(grad), view_of(grad_best), dense<int64_t>(best_head), tile};
    kernels_named(variant).best_head_gradient(call);
}

}  // namespace
}  // namespace rsattn

STABLE_TORCH_LIBRARY(rsattn_C, m) {
    m.def("cpu_variants() -> str");
    m.def(
        "cpu_forward(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, float dropout_p, float scale, "
        "int norm, bool per_sample, str variant, Tensor(a!) output, Tensor(b!) norms, Tensor(c!) best_head, "
        "Tensor(d!) logsumexp) -> ()");
    m.def(
        "cpu_backward(Tensor grad_output, Tensor? grad_best, Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor? seed, Tensor output, Tensor best_head, Tensor logsumexp, float dropout_p, float scale, str variant, "
        "Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) grad_value) -> ()");
    m.def(
        "cpu_add_best_head(Tensor projected, Tensor output, Tensor best_head, bool tile, str variant, "
        "Tensor(a!) out) -> ()");
    m.def(
        "cpu_best_head_gradient(Tensor grad, Tensor best_head, bool tile, str variant, Tensor(a!) grad_best) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rsattn_C, CompositeExplicitAutograd, m) {
    m.impl("cpu_variants", TORCH_BOX(&rsattn::variants));
}

STABLE_TORCH_LIBRARY_IMPL(rsattn_C, CPU, m) {
    m.impl("cpu_forward", TORCH_BOX(&rsattn::forward));
    m.impl("cpu_backward", TORCH_BOX(&rsattn::backward));
    m.impl("cpu_add_best_head", TORCH_BOX(&rsattn::add_best_head));
    m.impl("cpu_best_head_gradient", TORCH_BOX(&rsattn::best_head_gradient));
}
