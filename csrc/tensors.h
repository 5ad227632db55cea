// Plain views of PyTorch's tensors, for both operators files. Only the stable ABI is used, so one build works with
// every PyTorch from 2.10 on. rsattn/contract.py and rsattn/backends/dispatch.py check shapes, dtypes and options. But
// anyone can call an operator, so this file checks everything that could make a kernel read or write outside its
// tensors.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <type_traits>

#include "calls.h"

namespace rsattn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return Type::float32;
        case ScalarType::Half: return Type::float16;
        case ScalarType::BFloat16: return Type::bfloat16;
        case ScalarType::Double: return Type::float64;
        case ScalarType::Bool: return Type::boolean;
        default: STD_TORCH_CHECK(false, "rsattn's kernels take no tensor of this dtype");
    }
}

// Norms are numbers, in this order, because PyTorch's stable ABI leaks the memory of a string argument.
constexpr const char* NORMS = "induced entrywise confidence";

inline Norm norm_at(int64_t number) {
    STD_TORCH_CHECK(number >= 0 && number < 3, "the norms are numbered 0 to 2: ", NORMS);
    return Norm(number);
}

// Views of tensors, all on the same kind of device.
struct Viewer {
    bool on_gpu;        // whether the tensors are on a GPU
    bool gpus_kernels;  // whether GPU kernels, which check each best head themselves, read them

    void check(const Tensor& tensor) const {
        STD_TORCH_CHECK(on_gpu ? tensor.is_cuda() : tensor.is_cpu(), "these kernels take tensors on the ",
                        on_gpu ? "GPU" : "CPU");
    }

    View operator()(const Tensor& tensor, bool computed = true) const {
        check(tensor);
        STD_TORCH_CHECK(tensor.dim() == 3 || tensor.dim() == 4, "expected a tensor of 3 or 4 dimensions");
        View view;
        view.data = tensor.data_ptr();
        view.type = type_of(tensor);
        STD_TORCH_CHECK(!computed || (view.type != Type::float64 && view.type != Type::boolean),
                        "rsattn's kernels compute in float32, bfloat16 and float16");
        for (int64_t d = 0, to = 0; d < tensor.dim(); ++d, ++to) {
            if (d == 1 && tensor.dim() == 3) ++to;  // (B, N, D) is (B, 1, N, D)
            view.size[to] = tensor.size(d);
            view.stride[to] = tensor.stride(d);
        }
        return view;
    }

    // (D,) as (1, 1, 1, D).
    View channels(const Tensor& tensor) const {
        check(tensor);
        STD_TORCH_CHECK(tensor.dim() == 1, "expected a tensor of 1 dimension");
        View view;
        view.data = tensor.data_ptr();
        view.type = type_of(tensor);
        STD_TORCH_CHECK(view.type != Type::float64 && view.type != Type::boolean,
                        "rsattn's kernels compute in float32, bfloat16 and float16");
        view.size[3] = tensor.size(0);
        view.stride[3] = tensor.stride(0);
        return view;
    }

    // `count` contiguous elements.
    template <class T>
    T* dense(const Tensor& tensor, int64_t count) const {
        check(tensor);
        const ScalarType type = std::is_same_v<T, float>     ? ScalarType::Float
                                : std::is_same_v<T, int32_t> ? ScalarType::Int
                                                             : ScalarType::Long;
        STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous() && tensor.numel() == count &&
                            reinterpret_cast<uintptr_t>(tensor.data_ptr()) % sizeof(T) == 0,
                        "expected a contiguous tensor of ", count, " numbers of ", sizeof(T), " bytes");
        return static_cast<T*>(tensor.data_ptr());
    }

    // What the scores depend on.
    void describe(Attention& call, const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask,
                  double scale) const {
        call.query = (*this)(query);
        call.key = (*this)(key);
        const int64_t *size = call.query.size, batch = size[0], heads = size[1], length = size[2], keys = key.size(2);
        STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && heads > 0 && length > 0 && keys > 0 && size[3] > 0,
                        "query and key must be (batch, heads, length, head_dim), and only an empty batch may be empty");
        expect(call.key, {batch, heads, keys, size[3]}, "key");
        STD_TORCH_CHECK(call.key.type == call.query.type, "query and key must share one dtype");
        call.scale = float(scale);
        if (!mask) return;
        call.mask = (*this)(*mask, false);
        const int64_t repeat = call.mask.size[0];
        STD_TORCH_CHECK(batch == 0 || (repeat > 0 && batch % repeat == 0), "the mask's batch axis repeats, so ", batch,
                        " samples must be a multiple of its ", repeat);
        expect(call.mask, {repeat, heads, length, keys}, "mask");
    }

    void describe(Attention& call, const Tensor& query, const Tensor& key, const Tensor& value,
                  const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, double dropout_p, double scale,
                  const Tensor& output, const Tensor& best_head, const Tensor& statistics) const {
        describe(call, query, key, mask, scale);
        call.value = (*this)(value);
        call.output = (*this)(output);
        const int64_t *size = call.query.size, batch = size[0], heads = size[1], length = size[2];
        expect(call.value, {batch, heads, call.key.size[2], size[3]}, "value");
        expect(call.output, {batch, heads, length, size[3]}, "output");
        STD_TORCH_CHECK(call.value.type == call.query.type && call.output.type == call.query.type,
                        "query, key, value and output must share one dtype");
        STD_TORCH_CHECK(dropout_p >= 0.0 && dropout_p <= 1.0, "dropout_p must be a probability, from 0 to 1");
        if (seed) {
            // As threshold() and keep_scale() in rsattn/philox.py.
            const double words = std::nearbyint(dropout_p * 4294967296.0);
            call.dropout.on = true;
            call.dropout.seed = reinterpret_cast<const uint64_t*>(dense<int64_t>(*seed, 1));
            call.dropout.threshold = words > 4294967295.0 ? 4294967295u : uint32_t(words);
            call.dropout.scale = dropout_p >= 1.0 ? 0.0f : float(1.0 / (1.0 - dropout_p));
        }
        call.best_head = dense<int64_t>(best_head, batch);
        call.statistics = dense<float>(statistics, 2 * batch * heads * length);
    }

    // The attention received, where it is wanted.
    void describe(ForwardCall& call, const std::optional<Tensor>& received) const {
        if (received) call.received = dense<float>(*received, call.query.size[0] * call.query.size[1] * call.key.size[2]);
    }

    void describe(MaskGradientCall& call, const std::optional<Tensor>& mask, const Tensor& grad_mask) const {
        STD_TORCH_CHECK(mask && call.mask.type != Type::boolean, "only a float mask has a gradient");
        call.grad_mask = (*this)(grad_mask);
        const int64_t *size = call.grad_mask.size, heads = call.query.size[1];
        const int64_t repeat = call.mask.size[0], slices = repeat > 0 ? size[0] / repeat : 0;
        call.one_row = size[2] == 1;
        dense<float>(grad_mask, size[0] * size[1] * size[2] * size[3]);
        expect(call.grad_mask,
               {(slices > 1 ? slices : 1) * repeat, size[1] == 1 ? 1 : heads, call.one_row ? 1 : call.query.size[2],
                call.key.size[2]},
               "the gradient of the mask");
    }

    void upstream(Upstream& call, const Tensor& grad_output, const std::optional<Tensor>& grad_best) const {
        const int64_t* size = call.query.size;
        call.grad_output = (*this)(grad_output);
        expect(call.grad_output, {size[0], size[1], size[2], size[3]}, "the gradient of output");
        if (!grad_best) return;
        call.grad_best = (*this)(*grad_best);
        expect(call.grad_best, {size[0], 1, size[2], size[3]}, "the gradient of the best head");
        expect_heads(call.best_head, size[0], size[1]);
    }

    // The caller of the kernels has allocated these.
    void gradients(BackwardCall& call, const Tensor& query, const Tensor& key, const Tensor& value) const {
        const auto room = [&](const Tensor& tensor, const View& of, const char* name) {
            const View view = (*this)(tensor);
            expect(view, {of.size[0], of.size[1], of.size[2], of.size[3]}, name);
            return view;
        };
        call.grad_query = room(query, call.query, "query's gradient");
        call.grad_key = room(key, call.key, "key's gradient");
        call.grad_value = room(value, call.value, "value's gradient");
    }

    void describe(EpilogueCall& call, const Tensor& projected, const Tensor& output, const Tensor& best_head,
                  const std::optional<Tensor>& gamma, bool tile, const Tensor& out) const {
        call.projected = (*this)(projected);
        call.output = (*this)(output);
        call.out = (*this)(out);
        if (gamma) call.gamma = channels(*gamma);
        const int64_t *size = call.projected.size, *heads = call.output.size;
        expect(call.projected, {size[0], 1, size[2], size[3]}, "projected");
        expect(call.output, {size[0], heads[1], size[2], heads[3]}, "output");
        expect(call.out, {size[0], 1, size[2], size[3]}, "the sum");
        describe(call, best_head, call.projected, heads[1], heads[3], call.gamma, tile);
    }

    void describe(EpilogueGradientCall& call, const Tensor& grad, const Tensor& best_head, bool tile,
                  const Tensor& grad_best) const {
        call.grad = (*this)(grad);
        call.grad_best = (*this)(grad_best);
        const int64_t *size = call.grad.size, width = call.grad_best.size[3];
        expect(call.grad, {size[0], 1, size[2], size[3]}, "grad");
        expect(call.grad_best, {size[0], 1, size[2], width}, "the best head's gradient");
        // With merge="tile" the gradient is the same for every head; their number is not known here.
        const int64_t heads = tile ? INT64_MAX : width > 0 ? size[3] / width : 0;
        describe(call, best_head, call.grad, heads, width, View(), tile);
    }

    void describe(GateGradientsCall& call, const Tensor& grad, const Tensor& output, const Tensor& best_head,
                  const Tensor& gamma, bool tile, const Tensor& grad_best, const Tensor& grad_gamma) const {
        call.grad = (*this)(grad);
        call.output = (*this)(output);
        call.gamma = channels(gamma);
        call.grad_best = (*this)(grad_best);
        call.grad_gamma = channels(grad_gamma);
        const int64_t *size = call.grad.size, *heads = call.output.size;
        expect(call.grad, {size[0], 1, size[2], size[3]}, "grad");
        expect(call.output, {size[0], heads[1], size[2], heads[3]}, "output");
        expect(call.grad_best, {size[0], 1, size[2], heads[3]}, "the best head's gradient");
        expect(call.grad_gamma, {1, 1, 1, size[3]}, "gamma's gradient");
        describe(call, best_head, call.grad, heads[1], heads[3], call.gamma, tile);
    }

private:
    // The checks that every call of the residual shares: `tokens` are (B, 1, N, D), heads have `width` columns.
    void describe(Epilogue& call, const Tensor& best_head, const View& tokens, int64_t heads, int64_t width,
                  const View& gamma, bool tile) const {
        const int64_t batch = tokens.size[0], dim = tokens.size[3];
        STD_TORCH_CHECK(width > 0 && (tile ? dim % width == 0 : dim == heads * width), heads, " heads ", width,
                        " wide cannot be merged into ", dim, " channels");
        if (gamma.data) expect(gamma, {1, 1, 1, dim}, "gamma");
        call.best_head = dense<int64_t>(best_head, batch);
        call.tile = tile;
        expect_heads(call.best_head, batch, heads);
    }

    void expect_heads(const int64_t* best_head, int64_t batch, int64_t heads) const {
        for (int64_t b = 0; !gpus_kernels && b < batch; ++b)
            STD_TORCH_CHECK(best_head[b] >= 0 && best_head[b] < heads, "best_head is ", best_head[b], " for sample ", b,
                            ", and the heads are numbered from 0 to ", heads - 1);
    }

    static void expect(const View& view, const std::array<int64_t, 4>& size, const char* name) {
        STD_TORCH_CHECK(std::equal(size.begin(), size.end(), view.size), name, " must be (", size[0], ", ", size[1], ", ",
                        size[2], ", ", size[3], "); got (", view.size[0], ", ", view.size[1], ", ", view.size[2], ", ",
                        view.size[3], ")");
    }
};

}  // namespace
}  // namespace rsattn
