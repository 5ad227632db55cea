// The kernels for one instruction set. This file is compiled once for each set, with its flags and with RSATTN_VARIANT
// as its name. All code except the table is in an anonymous namespace, and no standard container is used: the linker
// could merge a shared function into one with instructions that this processor lacks.
#include "backward.h"
#include "epilogue_backward.h"
#include "forward.h"

namespace rsattn {
namespace {

// bfloat16 uses bfloat16 products if the instruction set has them; everything else is computed in float32.
bool in_pairs(const View& query) {
#if defined(__AVX512BF16__)
    return query.type == Type::bfloat16;
#else
    (void)query;
    return false;
#endif
}
#if !defined(__AVX512BF16__)
using Pair = Single;
#endif

void choose_forward(const ForwardCall& call) { in_pairs(call.query) ? forward<Pair>(call) : forward<Single>(call); }
void choose_backward(const BackwardCall& call) { in_pairs(call.query) ? backward<Pair>(call) : backward<Single>(call); }

#define RSATTN_STRING_OF(x) #x
#define RSATTN_STRING(x) RSATTN_STRING_OF(x)

}  // namespace

#define RSATTN_JOIN_OF(a, b) a##b
#define RSATTN_JOIN(a, b) RSATTN_JOIN_OF(a, b)
extern const Kernels RSATTN_JOIN(kernels_, RSATTN_VARIANT);
const Kernels RSATTN_JOIN(kernels_, RSATTN_VARIANT) = {RSATTN_STRING(RSATTN_VARIANT), choose_forward, choose_backward,
                                                      choose_add_best_head, best_head_gradient, gate_gradients};

}  // namespace rsattn
