// The operators rsattn_C::cpu_*: tensors to plain views, choice of the instruction set, PyTorch's threads.
#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <string>
#include <tuple>
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

// An exception in a thread would reach the caller as a failure of parallel_for without its message.
void parallel(int64_t tasks, int64_t grain, const void* context, Body body) {
    std::atomic<bool> no_memory{false};
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
        try {
            body(context, begin, end);
        } catch (const std::bad_alloc&) {
            no_memory = true;
        }
    });
    STD_TORCH_CHECK(!no_memory, "rsattn: not enough memory for what a thread keeps while it computes; use fewer threads "
                    "(torch.set_num_threads), or shorter sequences");
}

int64_t threads() { return torch::stable::get_num_threads(); }

namespace {

constexpr Viewer view_of{false, false};

// The variants that this processor can run, fastest first.
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

// An index into `variants()` instead of a string: see tensors.h.
const Kernels& kernels_at(int64_t variant) {
    static const std::vector<const Kernels*> found = usable();
    STD_TORCH_CHECK(variant >= 0 && variant < int64_t(found.size()), "this processor has ", found.size(), " variants");
    return *found[size_t(variant)];
}

std::string norms() { return NORMS; }

// Results are allocated here, because allocation from Python would be a large part of a short call.
bool poisoned = false;  // set by tests: new memory is NaN (integers: -1), which shows what a kernel does not write

void poison(bool on) { poisoned = on; }

int32_t dtype_of(const Tensor& tensor) {
    int32_t dtype = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    return dtype;
}

template <size_t D>
Tensor empty(const std::array<int64_t, D>& size, const std::array<int64_t, D>& stride, int32_t dtype) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(D, size.data(), stride.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
    Tensor tensor(handle);
    if (poisoned) {
        int64_t bytes = 0;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(handle, &bytes));
        if (bytes > 0) std::memset(tensor.data_ptr(), 0xff, size_t(bytes));
    }
    return tensor;
}

template <size_t D>
Tensor empty(const std::array<int64_t, D>& size, int32_t dtype) {
    std::array<int64_t, D> stride{};
    int64_t step = 1;
    for (size_t d = D; d-- > 0; step *= size[d] > 0 ? size[d] : 1) stride[d] = step;
    return empty(size, stride, dtype);
}

// (B, H, N, E), in memory (B, N, H, E).
Tensor empty_heads(const Tensor& like) {
    const int64_t heads = like.size(1), length = like.size(2), width = like.size(3);
    return empty<4>({like.size(0), heads, length, width}, {length * heads * width, width, heads * width, 1},
                    dtype_of(like));
}

Tensor empty_received(const Tensor& query, const Tensor& key) {
    STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key must have 4 dimensions");
    return empty<3>({query.size(0), query.size(1), key.size(2)}, aoti_torch_dtype_float32());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::optional<Tensor>> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& seed, double dropout_p, double scale, int64_t norm, bool per_sample,
    bool return_received, int64_t variant) {
    STD_TORCH_CHECK(query.dim() == 4, "query must have 4 dimensions");
    const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2);
    const Tensor output = empty_heads(query), norms = empty<2>({batch, heads}, aoti_torch_dtype_float32()),
                 best_head = empty<1>({batch}, aoti_torch_dtype_int64()),
                 statistics = empty<4>({batch, heads, 2, length}, aoti_torch_dtype_float32());
    std::optional<Tensor> received;
    if (return_received) received = empty_received(query, key);
    ForwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, statistics);
    view_of.describe(call, received);
    call.norm = norm_at(norm);
    call.per_sample = per_sample;
    call.norms = view_of.dense<float>(norms, batch * heads);
    kernels_at(variant).forward(call);
    return {output, norms, best_head, statistics, received};
}

Tensor received(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask, double scale,
                int64_t variant) {
    const Tensor sums = empty_received(query, key);
    ForwardCall call;
    view_of.describe(call, query, key, mask, scale);
    view_of.describe(call, sums);
    kernels_at(variant).forward(call);
    return sums;
}

// dQ, dK and dV, or one (B, N, 3, H, E) tensor of all three; then with `learned`, the mask in its own shape, its
// gradient.
std::vector<Tensor> backward(const Tensor& grad_output, const std::optional<Tensor>& grad_best, const Tensor& query,
                             const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                             const std::optional<Tensor>& seed, const Tensor& output, const Tensor& best_head,
                             const Tensor& statistics, double dropout_p, double scale, bool packed,
                             const std::optional<Tensor>& learned, int64_t variant) {
    BackwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, statistics);
    view_of.upstream(call, grad_output, grad_best);
    std::vector<Tensor> grads;
    View* views[3] = {&call.grad_query, &call.grad_key, &call.grad_value};
    if (packed) {
        STD_TORCH_CHECK(key.size(2) == query.size(2), "packed query, key and value have one length");
        const int64_t heads = query.size(1), length = query.size(2), width = query.size(3), row = heads * width;
        grads.push_back(empty<5>({query.size(0), length, 3, heads, width}, dtype_of(query)));
        for (int64_t part = 0; part < 3; ++part) {
            View& view = *views[part] = call.query;
            view.data = static_cast<char*>(grads[0].data_ptr()) + part * row * size_of(view.type);
            const int64_t stride[4] = {3 * length * row, width, 3 * row, 1};
            std::memcpy(view.stride, stride, sizeof stride);
        }
    } else {
        const Tensor* inputs[3] = {&query, &key, &value};
        for (int64_t part = 0; part < 3; ++part) {
            grads.push_back(empty_heads(*inputs[part]));
            *views[part] = view_of(grads.back());
        }
    }
    if (learned) {
        STD_TORCH_CHECK(mask && learned->dim() == 4 && learned->size(0) == mask->size(0) &&
                            type_of(*learned) == type_of(*mask),
                        "a learned mask must have 4 dimensions, and be the mask");
        const std::array<int64_t, 4> own{learned->size(0), learned->size(1), learned->size(2), learned->size(3)};
        grads.push_back(empty<4>(own, aoti_torch_dtype_float32()));
        view_of.describe(call, mask, grads.back());
    }
    kernels_at(variant).backward(call);
    return grads;
}

void join(const Tensor& projected, const Tensor& output, const Tensor& best_head, const std::optional<Tensor>& gamma,
          bool tile, int64_t variant, const Tensor& out) {
    EpilogueCall call;
    view_of.describe(call, projected, output, best_head, gamma, tile, out);
    kernels_at(variant).add_best_head(call);
}

Tensor add_best_head(const Tensor& projected, const Tensor& output, const Tensor& best_head,
                     const std::optional<Tensor>& gamma, bool tile, int64_t variant) {
    STD_TORCH_CHECK(projected.dim() == 3, "projected must have 3 dimensions");
    const Tensor out = empty<3>({projected.size(0), projected.size(1), projected.size(2)}, dtype_of(projected));
    join(projected, output, best_head, gamma, tile, variant, out);
    return out;
}

void add_best_head_in_place(const Tensor& projected, const Tensor& output, const Tensor& best_head,
                            const std::optional<Tensor>& gamma, bool tile, int64_t variant) {
    join(projected, output, best_head, gamma, tile, variant, projected);
}

Tensor best_head_gradient(const Tensor& grad, const Tensor& best_head, int64_t width, bool tile, int64_t variant) {
    STD_TORCH_CHECK(grad.dim() == 3 && width > 0 && width <= grad.size(2),
                    "grad must have 3 dimensions, and heads are not wider than the last of them");
    const Tensor grad_best = empty<3>({grad.size(0), grad.size(1), width}, dtype_of(grad));
    EpilogueGradientCall call;
    view_of.describe(call, grad, best_head, tile, grad_best);
    kernels_at(variant).best_head_gradient(call);
    return grad_best;
}

// merge^T(gamma * grad), (B, N, E), and d gamma, (D,).
std::tuple<Tensor, Tensor> gate_gradients(const Tensor& grad, const Tensor& output, const Tensor& best_head,
                                          const Tensor& gamma, bool tile, int64_t variant) {
    STD_TORCH_CHECK(grad.dim() == 3 && output.dim() == 4, "grad must have 3 dimensions, and output 4");
    const Tensor grad_best = empty<3>({grad.size(0), grad.size(1), output.size(3)}, dtype_of(output)),
                 grad_gamma = empty<1>({grad.size(2)}, dtype_of(gamma));
    GateGradientsCall call;
    view_of.describe(call, grad, output, best_head, gamma, tile, grad_best, grad_gamma);
    kernels_at(variant).gate_gradients(call);
    return {grad_best, grad_gamma};
}

}  // namespace
}  // namespace rsattn

STABLE_TORCH_LIBRARY_FRAGMENT(rsattn_C, m) {
    m.def("norms() -> str");
    m.def("cpu_variants() -> str");
    m.def("cpu_poison(bool on) -> ()");
    m.def(
        "cpu_forward(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, float dropout_p, float scale, "
        "int norm, bool per_sample, bool return_received, int variant) "
        "-> (Tensor output, Tensor norms, Tensor best_head, Tensor statistics, Tensor? received)");
    m.def("cpu_received(Tensor query, Tensor key, Tensor? mask, float scale, int variant) -> Tensor");
    m.def(
        "cpu_backward(Tensor grad_output, Tensor? grad_best, Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor? seed, Tensor output, Tensor best_head, Tensor statistics, float dropout_p, float scale, bool packed, "
        "Tensor? learned, int variant) -> Tensor[]");
    m.def(
        "cpu_add_best_head(Tensor projected, Tensor output, Tensor best_head, Tensor? gamma, bool tile, int variant) "
        "-> Tensor");
    m.def(
        "cpu_add_best_head_(Tensor(a!) projected, Tensor output, Tensor best_head, Tensor? gamma, bool tile, "
        "int variant) -> ()");
    m.def("cpu_best_head_gradient(Tensor grad, Tensor best_head, int width, bool tile, int variant) -> Tensor");
    m.def(
        "cpu_gate_gradients(Tensor grad, Tensor output, Tensor best_head, Tensor gamma, bool tile, int variant) "
        "-> (Tensor grad_best, Tensor grad_gamma)");
}

STABLE_TORCH_LIBRARY_IMPL(rsattn_C, CompositeExplicitAutograd, m) {
    m.impl("norms", TORCH_BOX(&rsattn::norms));
    m.impl("cpu_variants", TORCH_BOX(&rsattn::variants));
    m.impl("cpu_poison", TORCH_BOX(&rsattn::poison));
}

STABLE_TORCH_LIBRARY_IMPL(rsattn_C, CPU, m) {
    m.impl("cpu_forward", TORCH_BOX(&rsattn::forward));
    m.impl("cpu_received", TORCH_BOX(&rsattn::received));
    m.impl("cpu_backward", TORCH_BOX(&rsattn::backward));
    m.impl("cpu_add_best_head", TORCH_BOX(&rsattn::add_best_head));
    m.impl("cpu_add_best_head_", TORCH_BOX(&rsattn::add_best_head_in_place));
    m.impl("cpu_best_head_gradient", TORCH_BOX(&rsattn::best_head_gradient));
    m.impl("cpu_gate_gradients", TORCH_BOX(&rsattn::gate_gradients));
}
