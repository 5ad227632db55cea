// What both operators files need of PyTorch's tensors: plain views of them. Only the stable ABI is used, so one build
// serves every PyTorch from 2.10 on. Shapes, dtypes and choices have been checked by rsattn/contract.py and
// rsattn/backends/dispatch.py; what is checked here is what a wrong caller could crash.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <string>

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

// Norms come by number, in this order: PyTorch's stable ABI leaks the memory of a string at every call.
constexpr const char* NORMS = "induced entrywise confidence";

inline Norm norm_at(int64_t number) {
    STD_TORCH_CHECK(number >= 0 && number < 3, "the norms are numbered 0 to 2: ", NORMS);
    return Norm(number);
}

// Views of tensors that all lie on one kind of device.
struct Viewer {
    bool on_gpu;

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

    template <class T>
    T* dense(const Tensor& tensor) const {
        check(tensor);
        STD_TORCH_CHECK(tensor.is_contiguous(), "expected a contiguous tensor");
        return static_cast<T*>(tensor.data_ptr());
    }

    void describe(Attention& call, const Tensor& query, const Tensor& key, const Tensor& value,
                  const std::optional<Tensor>& mask, const std::optional<Tensor>& seed, double dropout_p, double scale,
                  const Tensor& output, const Tensor& best_head, const Tensor& logsumexp) const {
        call.query = (*this)(query);
        call.key = (*this)(key);
        call.value = (*this)(value);
        call.output = (*this)(output);
        if (mask) call.mask = (*this)(*mask, false);
        if (seed) {
            // As rsattn/philox.py: threshold() and keep_scale().
            const double words = std::nearbyint(dropout_p * 4294967296.0);
            call.dropout.on = true;
            call.dropout.seed = dense<uint64_t>(*seed);
            call.dropout.threshold = words > 4294967295.0 ? 4294967295u : uint32_t(words);
            call.dropout.scale = dropout_p >= 1.0 ? 0.0f : float(1.0 / (1.0 - dropout_p));
        }
        call.scale = float(scale);
        call.best_head = dense<int64_t>(best_head);
        call.logsumexp = dense<float>(logsumexp);
    }
};

}  // namespace
}  // namespace rsattn
