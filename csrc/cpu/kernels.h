// The interface between the operators (operators.cpp, which uses PyTorch) and the kernels (variant.cpp, compiled once
// for each instruction set, without PyTorch): a table of functions, and threads. calls.h has the calls.
#pragma once
#include "../calls.h"

namespace rsattn {

// Runs body(context, begin, end) on PyTorch's threads for ranges of [0, tasks) of at least `grain` tasks.
using Body = void (*)(const void* context, int64_t begin, int64_t end);
void parallel(int64_t tasks, int64_t grain, const void* context, Body body);
int64_t threads();

template <class F>
void parallel_for(int64_t tasks, int64_t grain, const F& f) {
    parallel(tasks, grain, &f, [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
    });
}

struct Kernels {
    const char* name;
    void (*forward)(const ForwardCall&);
    void (*backward)(const BackwardCall&);
    void (*add_best_head)(const EpilogueCall&);
    void (*best_head_gradient)(const EpilogueGradientCall&);
    void (*gate_gradients)(const GateGradientsCall&);
};

}  // namespace rsattn
