// The interface between the operators (operators.cpp, which uses PyTorch) and the launchers (kernels.cu, which uses
// CUDA, or model/model.cpp): calls, and their GPU.
#pragma once
#include <string>

#include "../calls.h"

namespace rsattn::cuda {

// The properties of a GPU on which a launcher decides.
struct Gpu {
    int device = 0;
    bool sm90 = false;      // whether it runs the kernels for sm_90a
    int shared_memory = 0;  // the most bytes of a block
    void* stream = nullptr;  // PyTorch's current stream
};

// The CUDA version and the architectures of this build, such as "13.0 80;90a".
std::string build();
// The reason why the kernels cannot run on GPU number `device`; empty if they can.
std::string missing(int device);
Gpu gpu(int device);

// The memory of a forward pass besides its results: float32 partial results, and int32 counters that are zero.
struct Workspace {
    int64_t partials = 0;
    int64_t counters = 0;
};
Workspace workspace(const ForwardCall& call, const Gpu& gpu);
// The same for the gate's gradients, which need no counters.
Workspace workspace(const GateGradientsCall& call);

// Each returns an error message, or an empty string.
std::string forward(const ForwardCall& call, const Gpu& gpu, float* partials, int32_t* counters);
std::string backward(const BackwardCall& call, const Gpu& gpu);
std::string mask_gradient(const MaskGradientCall& call, const Gpu& gpu);
std::string add_best_head(const EpilogueCall& call, const Gpu& gpu);
std::string best_head_gradient(const EpilogueGradientCall& call, const Gpu& gpu);
std::string gate_gradients(const GateGradientsCall& call, const Gpu& gpu, float* partials);

// The most queries and keys that `backward` supports at this width, because a whole head has to fit on chip.
int64_t backward_length(int64_t width, const Gpu& gpu);

}  // namespace rsattn::cuda
