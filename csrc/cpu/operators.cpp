// The operators rsattn_C::cpu_*: tensors to plain views, the kernels of one instruction set, PyTorch's threads.
#include <string>
#include <vector>

#include "../tensors.h"
#include "kernels.h"

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

constexpr Viewer view_of{false};

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

void forward(Tensor query, Tensor key, Tensor value, std::optional<Tensor> mask, std::optional<Tensor> seed,
             double dropout_p, double scale, int64_t norm, bool per_sample, std::string variant, Tensor output,
             Tensor norms, Tensor best_head, Tensor logsumexp) {
    ForwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, logsumexp);
    call.norm = Norm(norm);
    call.per_sample = per_sample;
    call.norms = view_of.dense<float>(norms);
    kernels_named(variant).forward(call);
}

void backward(Tensor grad_output, std::optional<Tensor> grad_best, Tensor query, Tensor key, Tensor value,
              std::optional<Tensor> mask, std::optional<Tensor> seed, Tensor output, Tensor best_head, Tensor logsumexp,
              double dropout_p, double scale, std::string variant, Tensor grad_query, Tensor grad_key,
              Tensor grad_value) {
    BackwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, logsumexp);
    call.grad_output = view_of(grad_output);
    if (grad_best) call.grad_best = view_of(*grad_best);
    call.grad_query = view_of(grad_query);
    call.grad_key = view_of(grad_key);
    call.grad_value = view_of(grad_value);
    kernels_named(variant).backward(call);
}

void add_best_head(Tensor projected, Tensor output, Tensor best_head, bool tile, std::string variant, Tensor out) {
    const EpilogueCall call{view_of(projected), view_of(output), view_of(out), view_of.dense<int64_t>(best_head), tile};
    kernels_named(variant).add_best_head(call);
}

void best_head_gradient(Tensor grad, Tensor best_head, bool tile, std::string variant, Tensor grad_best) {
    const EpilogueGradientCall call{view_of(grad), view_of(grad_best), view_of.dense<int64_t>(best_head), tile};
    kernels_named(variant).best_head_gradient(call);
}

}  // namespace
}  // namespace rsattn

STABLE_TORCH_LIBRARY_FRAGMENT(rsattn_C, m) {
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
