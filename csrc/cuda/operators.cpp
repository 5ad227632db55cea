// The operators rsattn_C::cuda_*: tensors to plain views, memory for partial results, PyTorch's stream. With
// RSATTN_MODEL defined, this file gives the operators of the model, on CPU tensors.
#include <string>

#include "../tensors.h"
#include "kernels.h"

namespace rsattn::cuda {
namespace {

#if defined(RSATTN_MODEL)
constexpr Viewer view_of{false, true};
#else
constexpr Viewer view_of{true, true};
#endif

void refuse(const std::string& reason) {
    STD_TORCH_CHECK(reason.empty(), "rsattn's CUDA kernels: ", reason.c_str());
}

std::string missing_on(int64_t device) { return missing(int(device)); }

int64_t backward_length_on(int64_t width, int64_t device) { return backward_length(width, gpu(int(device))); }

Gpu gpu_of(const Tensor& tensor) { return gpu(tensor.get_device_index()); }

// A described call on the GPU of `query`.
void run(const ForwardCall& call, const Tensor& query) {
    const Gpu on = gpu_of(query);
    const Workspace needed = workspace(call, on);
    const Tensor partials = torch::stable::new_empty(query, {needed.partials}, ScalarType::Float);
    const Tensor counters = torch::stable::new_zeros(query, {needed.counters}, ScalarType::Int);
    refuse(forward(call, on, view_of.dense<float>(partials, needed.partials),
                   view_of.dense<int32_t>(counters, needed.counters)));
}

void forward_op(Tensor query, Tensor key, Tensor value, std::optional<Tensor> mask, std::optional<Tensor> seed,
                double dropout_p, double scale, int64_t norm, bool per_sample, Tensor output, Tensor norms,
                Tensor best_head, Tensor statistics, std::optional<Tensor> received) {
    ForwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, statistics);
    view_of.describe(call, received);
    call.norm = norm_at(norm);
    call.per_sample = per_sample;
    call.norms = view_of.dense<float>(norms, query.size(0) * query.size(1));
    run(call, query);
}

void received_op(Tensor query, Tensor key, std::optional<Tensor> mask, double scale, Tensor received) {
    ForwardCall call;
    view_of.describe(call, query, key, mask, scale);
    view_of.describe(call, received);
    run(call, query);
}

void backward_op(Tensor grad_output, std::optional<Tensor> grad_best, Tensor query, Tensor key, Tensor value,
                 std::optional<Tensor> mask, std::optional<Tensor> seed, Tensor output, Tensor best_head,
                 Tensor statistics, double dropout_p, double scale, Tensor grad_query, Tensor grad_key,
                 Tensor grad_value) {
    BackwardCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, statistics);
    view_of.upstream(call, grad_output, grad_best);
    view_of.gradients(call, grad_query, grad_key, grad_value);
    refuse(backward(call, gpu_of(query)));
}

void mask_gradient_op(Tensor grad_output, std::optional<Tensor> grad_best, Tensor query, Tensor key, Tensor value,
                      Tensor mask, std::optional<Tensor> seed, Tensor output, Tensor best_head, Tensor statistics,
                      double dropout_p, double scale, Tensor grad_mask) {
    MaskGradientCall call;
    view_of.describe(call, query, key, value, mask, seed, dropout_p, scale, output, best_head, statistics);
    view_of.upstream(call, grad_output, grad_best);
    view_of.describe(call, mask, grad_mask);
    refuse(mask_gradient(call, gpu_of(query)));
}

void add_best_head_op(Tensor projected, Tensor output, Tensor best_head, std::optional<Tensor> gamma, bool tile,
                      Tensor out) {
    EpilogueCall call;
    view_of.describe(call, projected, output, best_head, gamma, tile, out);
    refuse(add_best_head(call, gpu_of(projected)));
}

void best_head_gradient_op(Tensor grad, Tensor best_head, bool tile, Tensor grad_best) {
    EpilogueGradientCall call;
    view_of.describe(call, grad, best_head, tile, grad_best);
    refuse(best_head_gradient(call, gpu_of(grad)));
}

void gate_gradients_op(Tensor grad, Tensor output, Tensor best_head, Tensor gamma, bool tile, Tensor grad_best,
                       Tensor grad_gamma) {
    GateGradientsCall call;
    view_of.describe(call, grad, output, best_head, gamma, tile, grad_best, grad_gamma);
    const int64_t needed = workspace(call).partials;
    const Tensor partials = torch::stable::new_empty(grad, {needed}, ScalarType::Float);
    refuse(gate_gradients(call, gpu_of(grad), view_of.dense<float>(partials, needed)));
}

}  // namespace
}  // namespace rsattn::cuda

#if defined(RSATTN_MODEL)
#define RSATTN_LIBRARY rsattn_cuda_model
#define RSATTN_DEVICE CPU
#else
#define RSATTN_LIBRARY rsattn_C
#define RSATTN_DEVICE CUDA
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(RSATTN_LIBRARY, m) {
    m.def("cuda_build() -> str");
    m.def("cuda_missing(int device) -> str");
    m.def("cuda_backward_length(int width, int device) -> int");
    m.def(
        "cuda_forward(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, float dropout_p, "
        "float scale, int norm, bool per_sample, Tensor(a!) output, Tensor(b!) norms, Tensor(c!) best_head, "
        "Tensor(d!) statistics, Tensor(e!)? received) -> ()");
    m.def("cuda_received(Tensor query, Tensor key, Tensor? mask, float scale, Tensor(a!) received) -> ()");
    m.def(
        "cuda_backward(Tensor grad_output, Tensor? grad_best, Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor? seed, Tensor output, Tensor best_head, Tensor statistics, float dropout_p, float scale, "
        "Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) grad_value) -> ()");
    m.def(
        "cuda_mask_gradient(Tensor grad_output, Tensor? grad_best, Tensor query, Tensor key, Tensor value, "
        "Tensor mask, Tensor? seed, Tensor output, Tensor best_head, Tensor statistics, float dropout_p, float scale, "
        "Tensor(a!) grad_mask) -> ()");
    m.def(
        "cuda_add_best_head(Tensor projected, Tensor output, Tensor best_head, Tensor? gamma, bool tile, "
        "Tensor(a!) out) -> ()");
    m.def("cuda_best_head_gradient(Tensor grad, Tensor best_head, bool tile, Tensor(a!) grad_best) -> ()");
    m.def(
        "cuda_gate_gradients(Tensor grad, Tensor output, Tensor best_head, Tensor gamma, bool tile, "
        "Tensor(a!) grad_best, Tensor(b!) grad_gamma) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(RSATTN_LIBRARY, CompositeExplicitAutograd, m) {
    m.impl("cuda_build", TORCH_BOX(&rsattn::cuda::build));
    m.impl("cuda_missing", TORCH_BOX(&rsattn::cuda::missing_on));
    m.impl("cuda_backward_length", TORCH_BOX(&rsattn::cuda::backward_length_on));
}

STABLE_TORCH_LIBRARY_IMPL(RSATTN_LIBRARY, RSATTN_DEVICE, m) {
    m.impl("cuda_forward", TORCH_BOX(&rsattn::cuda::forward_op));
    m.impl("cuda_received", TORCH_BOX(&rsattn::cuda::received_op));
    m.impl("cuda_backward", TORCH_BOX(&rsattn::cuda::backward_op));
    m.impl("cuda_mask_gradient", TORCH_BOX(&rsattn::cuda::mask_gradient_op));
    m.impl("cuda_add_best_head", TORCH_BOX(&rsattn::cuda::add_best_head_op));
    m.impl("cuda_best_head_gradient", TORCH_BOX(&rsattn::cuda::best_head_gradient_op));
    m.impl("cuda_gate_gradients", TORCH_BOX(&rsattn::cuda::gate_gradients_op));
}
