// What crosses between the operators (operators.cpp, which knows PyTorch) and the launchers (kernels.cu, which knows
// CUDA, or model/model.cpp): calls, and the GPU they are for.
#pragma once
#include <string>

#include "../calls.h"

namespace rsattn::cuda {

// What a launcher decides from.
struct Gpu {
    int device = 0;
    bool sm90 = false;      // whether it runs the kernels made for sm_90a
    int shared_memory = 0;  // bytes that one block may have
    void* stream = nullptr;  // PyTorch's current one
};

// The CUDA that built this and what it built for, such as "13.0 80;90a".
std::string build();
// Why the kernels cannot run on GPU number `device`; empty when they can.
std::string missing(int device);
Gpu gpu(int device);

// What a forward pass needs beside its results: float32 partial results, and int32 counters that are zero.
struct Workspace {
    int64_t partials = 0;
    int64_t counters = 0;
};
Workspace workspace(const ForwardCall& call, const Gpu& gpu);
// The same of the gate's gradients, which need no counters.
Workspace workspace(const GateGradientsCall& call);

// Each returns what went wrong, or an empty string.
std::string forward(const ForwardCall& call, const Gpu& gpu, float* partials, int32_t* counters);
std::string backward(const BackwardCall& call, const Gpu& gpu);
std::string add_best_head(const EpilogueCall& call, const Gpu& gpu);
std::string best_head_gradient(const EpilogueGradientCall& call, const Gpu& gpu);
std::string gate_gradients(const GateGradientsCall& call, const Gpu& gpu, float* partials);

// The most queries and keys that `backward` takes of a head that wide: all of it has to be on chip at once.
int64_t backward_length(int64_t width, const Gpu& gpu);

}  // namespace rsattn::cuda
