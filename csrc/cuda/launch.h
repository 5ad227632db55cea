// From a call to kernels: which kernel, its parameters, the number of blocks and the shared memory. kernels.cu and
// model/model.cpp include this after defining how a kernel is started and how a tensor map is made:
//
//     template <class Kernel>
//     std::string launch(const Gpu&, int64_t blocks, int threads, int shared_bytes, const typename Kernel::Parameters&);
//     std::string encode(TensorMap& map, const View& view);
//
// Both return an error message, or an empty string. Kernels take sizes as int; larger sizes are rejected here.
#pragma once
#include <climits>

#include "backward.h"
#include "column_sums.h"
#include "epilogue.h"
#include "forward.h"
#include "gate.h"
#include "kernels.h"
#include "mask_gradient.h"

namespace rsattn::cuda {

constexpr int MOST_WIDTH = 2 * PANEL;

inline Operand operand_of(const View& view) {
    Operand operand;
    operand.data = static_cast<uint16_t*>(view.data);
    operand.vectors = view.stride[3] == 1 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
    for (int d = 0; d < 4; ++d) {
        operand.stride[d] = view.stride[d];
        if (d < 3 && view.size[d] > 1) operand.vectors &= view.stride[d] % PIECE == 0;
    }
    return operand;
}

// A bulk copy also needs positive strides.
inline bool mappable(const View& view) {
    bool can = operand_of(view).vectors;
    for (int d = 0; d < 3; ++d) can &= view.size[d] == 1 || view.stride[d] > 0;
    return can;
}

// Fragments are stored two elements at a time.
inline bool writable(const View& view) {
    bool can = view.stride[3] == 1 && reinterpret_cast<uintptr_t>(view.data) % 4 == 0;
    for (int d = 0; d < 3; ++d) can &= view.size[d] == 1 || view.stride[d] % 2 == 0;
    return can;
}

inline Mask mask_of(const View& view) {
    Mask mask;
    mask.data = view.data;
    mask.type = view.type;
    mask.repeat = int(view.size[0]);
    for (int d = 0; d < 4; ++d) mask.stride[d] = view.stride[d];
    return mask;
}

inline Numbers numbers_of(const View& view) {
    Numbers numbers;
    numbers.data = view.data;
    numbers.type = view.type;
    for (int d = 0; d < 4; ++d) numbers.stride[d] = view.stride[d];
    return numbers;
}

inline std::string refusal(const Attention& call) {
    const Type type = call.query.type;
    if (type != Type::float16 && type != Type::bfloat16) return "take float16 and bfloat16";
    const int64_t width = call.query.size[3];
    if (width % PIECE != 0 || width > MOST_WIDTH) return "take heads up to 128 wide, a multiple of 8";
    const int64_t heads = call.query.size[0] * call.query.size[1];
    const int64_t longest = call.query.size[2] > call.key.size[2] ? call.query.size[2] : call.key.size[2];
    if (heads > INT_MAX / 2 || heads * ((longest + ROWS - 1) / ROWS) > INT_MAX || longest > INT_MAX - ROWS)
        return "take fewer than 2^31 blocks of 64 rows";
    return "";
}

// Whether the factor of scores can be applied in the exponential, as in kernels/launch.py, whose backward pass may
// follow. Not with a mask, which is added in log2 units. Not if it is negative, which reverses the order of the scores,
// or so small that differences of unscaled scores may overflow.
inline bool scale_waits(const Attention& call) { return call.mask.data == nullptr && call.scale >= 0x1p-100f; }

inline bool has_extras(const Attention& call) { return !scale_waits(call) || call.dropout.on; }

// Calls f with the element type, the width in whole panels and whether there are extras, as template arguments.
template <template <class, int, bool> class Kernel, class F>
std::string with_kernel(const Attention& call, bool extras, const F& f) {
    const bool narrow = call.query.size[3] <= PANEL;
    auto with_extras = [&](auto element, auto width) {
        using Element = decltype(element);
        constexpr int WIDTH = decltype(width)::value;
        return extras ? f(Kernel<Element, WIDTH, true>()) : f(Kernel<Element, WIDTH, false>());
    };
    auto with_width = [&](auto element) {
        return narrow ? with_extras(element, std::integral_constant<int, PANEL>())
                      : with_extras(element, std::integral_constant<int, 2 * PANEL>());
    };
    return call.query.type == Type::float16 ? with_width(float16()) : with_width(bfloat16());
}

template <int WIDTH>
int bytes_one_pass(int groups, int64_t keys) {
    // More keys than fit on any GPU, and more bytes than an int holds.
    return keys > 1 << 15 ? INT_MAX : ForwardLayout<WIDTH>::of(groups, int(keys)).bytes(true);
}

// The division of a forward pass into blocks. It does not depend on the batch, so the results do not either.
struct Plan {
    bool columns = false;   // whether column sums are computed
    bool one_pass = false;  // whether one pass over keys gives them too, because the probabilities are kept
    int groups = 1, row_blocks = 1;
    int key_groups = 1, key_blocks = 1;  // in the second pass
};

inline int groups_of(int64_t rows) { return rows > ROWS ? MOST_GROUPS : 1; }
inline int blocks_of(int64_t rows, int groups) { return int((rows + groups * ROWS - 1) / (groups * ROWS)); }

inline Plan plan(const ForwardCall& call, const Gpu& gpu) {
    const int64_t queries = call.query.size[2], keys = call.key.size[2];
    const auto fits = [&](int groups) {
        const int bytes = call.query.size[3] <= PANEL ? bytes_one_pass<PANEL>(groups, keys)
                                                      : bytes_one_pass<2 * PANEL>(groups, keys);
        return bytes <= gpu.shared_memory;
    };
    Plan plan;
    plan.columns = call.norm == Norm::induced || call.received != nullptr;
    plan.one_pass = plan.columns && fits(1);
    plan.groups = plan.one_pass && !fits(groups_of(queries)) ? 1 : groups_of(queries);
    plan.row_blocks = blocks_of(queries, plan.groups);
    plan.key_groups = groups_of(keys);
    plan.key_blocks = blocks_of(keys, plan.key_groups);
    return plan;
}

// The partial results of a forward pass, in the order of their memory.
struct Partials {
    int64_t columns;     // (B * H, row_blocks, M): column sums
    int64_t terms;       // (B * H, terms_of_head): of norms
    int64_t statistics;  // (B, H, 2, N), if a second pass needs them and the caller does not
    int terms_of_head;
};

inline Partials partials_of(const ForwardCall& call, const Plan& how) {
    const int64_t heads = call.query.size[0] * call.query.size[1];
    Partials floats{};
    if (how.one_pass) floats.columns = heads * how.row_blocks * call.key.size[2];
    if (call.norm != Norm::induced)
        floats.terms_of_head = how.row_blocks * how.groups;
    else if (!how.one_pass && !call.alone())
        floats.terms_of_head = how.key_blocks;
    floats.terms = heads * floats.terms_of_head;
    if (!how.one_pass && call.alone()) floats.statistics = heads * 2 * call.query.size[2];
    return floats;
}

Workspace workspace(const ForwardCall& call, const Gpu& gpu) {
    const Partials floats = partials_of(call, plan(call, gpu));
    Workspace needed;
    needed.partials = floats.columns + floats.terms + floats.statistics;
    needed.counters = call.query.size[0] * call.query.size[1] + call.query.size[0] + 1;
    return needed;
}

inline std::string map_inputs(Inputs& inputs, int groups, const View& held, const View& streamed, const View* values,
                              const Gpu& gpu) {
    inputs.groups = groups;
    inputs.held = operand_of(held);
    inputs.streamed = operand_of(streamed);
    if (values != nullptr) inputs.values = operand_of(*values);
    inputs.held_rows = int(held.size[2]);
    inputs.streamed_rows = int(streamed.size[2]);
    inputs.width = int(held.size[3]);
    inputs.mapped = gpu.sm90 && mappable(held) && mappable(streamed) && (values == nullptr || mappable(*values));
    if (!inputs.mapped) return "";
    std::string fault = encode(inputs.held_map, held);
    if (fault.empty()) fault = encode(inputs.streamed_map, streamed);
    if (fault.empty() && values != nullptr) fault = encode(inputs.values_map, *values);
    return fault;
}

std::string forward(const ForwardCall& call, const Gpu& gpu, float* partials, int32_t* counters) {
    std::string fault = refusal(call);
    const int batch = int(call.query.size[0]), heads = int(call.query.size[1]);
    if (!fault.empty() || batch == 0) return fault;
    if (!call.alone() && !writable(call.output))
        return "write an output whose rows are contiguous and begin at a multiple of 4 bytes";
    const Plan how = plan(call, gpu);
    const Partials floats = partials_of(call, how);
    const int queries = int(call.query.size[2]), keys = int(call.key.size[2]);

    Ranking ranking{};
    ranking.norm = call.norm;
    ranking.per_sample = call.per_sample;
    ranking.batch = batch;
    ranking.heads = heads;
    ranking.queries = queries;
    ranking.columns = partials;
    ranking.terms = partials + floats.columns;
    ranking.count = floats.terms_of_head;
    ranking.counters = counters;
    ranking.received = call.received;
    ranking.norms = call.norms;
    ranking.best_head = call.best_head;

    ForwardParameters p{};
    fault = map_inputs(p.inputs, how.groups, call.query, call.key, call.alone() ? nullptr : &call.value, gpu);
    if (!fault.empty()) return fault;
    p.mask = mask_of(call.mask);
    p.dropout = call.dropout;
    p.output = operand_of(call.output);
    p.statistics = floats.statistics > 0 ? partials + floats.columns + floats.terms : call.statistics;
    p.scale = scale_waits(call) ? 1.0f : call.scale * LOG2E;
    p.factor = scale_waits(call) ? call.scale * LOG2E : 1.0f;
    p.heads = heads;
    p.queries = queries;
    p.keys = keys;
    p.width = int(call.query.size[3]);
    p.row_blocks = how.row_blocks;
    p.keeps_tiles = how.one_pass;
    p.finishes = how.one_pass || call.norm != Norm::induced;
    p.ranking = ranking;
    p.ranking.blocks = how.row_blocks;
    p.ranking.keys = how.one_pass ? keys : 0;
    fault = with_kernel<Forward>(call, has_extras(call), [&](auto kernel) {
        using Kernel = decltype(kernel);
        const int bytes = Kernel::Layout::of(how.groups, keys).bytes(how.one_pass);
        return launch<Kernel>(gpu, int64_t(batch) * heads * p.row_blocks, how.groups * GROUP, bytes, p);
    });
    if (!fault.empty() || !how.columns || how.one_pass) return fault;

    ColumnSumsParameters c{};
    fault = map_inputs(c.inputs, how.key_groups, call.key, call.query, nullptr, gpu);
    if (!fault.empty()) return fault;
    c.mask = p.mask;
    c.statistics = p.statistics;
    c.scale = p.scale;
    c.factor = p.factor;
    c.heads = heads;
    c.queries = queries;
    c.keys = keys;
    c.key_blocks = how.key_blocks;
    c.ranking = ranking;
    c.ranking.blocks = c.key_blocks;
    if (call.norm != Norm::induced) c.ranking.norms = nullptr;
    return with_kernel<ColumnSums>(call, has_extras(call), [&](auto kernel) {
        using Kernel = decltype(kernel);
        return launch<Kernel>(gpu, int64_t(batch) * heads * c.key_blocks, how.key_groups * GROUP,
                              Kernel::Layout::bytes(how.key_groups), c);
    });
}

template <class Layout>
int64_t longest(const Gpu& gpu) {
    int length = Layout::MOST;
    while (length > 0 && Layout::bytes(length, length, false) > gpu.shared_memory) length -= ROWS;
    return length;
}

int64_t backward_length(int64_t width, const Gpu& gpu) {
    if (width > MOST_WIDTH) return 0;
    return width <= PANEL ? longest<BackwardLayout<PANEL>>(gpu) : longest<BackwardLayout<2 * PANEL>>(gpu);
}

// What the kernels of all gradients read.
template <class Parameters>
Parameters described(const Upstream& call) {
    Parameters p{};
    p.query = operand_of(call.query);
    p.key = operand_of(call.key);
    p.value = operand_of(call.value);
    p.output = operand_of(call.output);
    p.gradient = operand_of(call.grad_output);
    if (call.grad_best.data != nullptr) p.best_gradient = operand_of(call.grad_best);
    p.mask = mask_of(call.mask);
    p.dropout = call.dropout;
    p.statistics = call.statistics;
    p.best_head = call.best_head;
    p.heads = int(call.query.size[1]);
    p.queries = int(call.query.size[2]);
    p.keys = int(call.key.size[2]);
    p.width = int(call.query.size[3]);
    return p;
}

// The reason why the kernels cannot take these gradients of the results; empty if they can.
std::string refusal_of_upstream(const Upstream& call) {
    for (const View* view : {&call.grad_output, &call.grad_best})
        if (view->data != nullptr && view->type != call.query.type) return "take gradients of the inputs' dtype";
    return "";
}

std::string backward(const BackwardCall& call, const Gpu& gpu) {
    std::string fault = refusal(call);
    const int64_t batch = call.query.size[0], heads = call.query.size[1];
    if (!fault.empty() || batch == 0) return fault;
    const int queries = int(call.query.size[2]), keys = int(call.key.size[2]), width = int(call.query.size[3]);
    if ((queries > keys ? queries : keys) > backward_length(width, gpu))
        return "keep a whole head on chip in the backward pass, and this one does not fit";
    fault = refusal_of_upstream(call);
    if (!fault.empty()) return fault;
    for (const View* view : {&call.grad_query, &call.grad_key, &call.grad_value}) {
        if (view->type != call.query.type) return "take gradients of the inputs' dtype";
        if (!writable(*view)) return "write gradients whose rows are contiguous and begin at a multiple of 4 bytes";
    }
    BackwardParameters p = described<BackwardParameters>(call);
    p.query_gradient = operand_of(call.grad_query);
    p.key_gradient = operand_of(call.grad_key);
    p.value_gradient = operand_of(call.grad_value);
    p.scale = call.scale;
    p.before = scale_waits(call) ? 1.0f : call.scale * LOG2E;
    p.factor = scale_waits(call) ? call.scale * LOG2E : 1.0f;
    return with_kernel<Backward>(call, has_extras(call), [&](auto kernel) {
        using Kernel = decltype(kernel);
        p.two_gradients = Kernel::Layout::bytes(queries, keys, true) <= gpu.shared_memory;
        return launch<Kernel>(gpu, batch * heads, Kernel::Layout::tiles(keys) * GROUP,
                              Kernel::Layout::bytes(queries, keys, p.two_gradients), p);
    });
}

std::string mask_gradient(const MaskGradientCall& call, const Gpu& gpu) {
    std::string fault = refusal(call);
    if (fault.empty()) fault = refusal_of_upstream(call);
    if (!fault.empty()) return fault;
    MaskGradientParameters p = described<MaskGradientParameters>(call);
    p.result = static_cast<float*>(call.grad_mask.data);
    p.scale = call.scale * LOG2E;
    p.mask_heads = int(call.grad_mask.size[1]);
    p.one_row = call.one_row;
    const int tiles = blocks_of(p.queries, 1);
    p.row_blocks = p.one_row ? 1 : tiles;
    p.tiles_each = p.one_row ? tiles : 1;
    p.key_blocks = blocks_of(p.keys, 1);
    const int64_t entries = call.grad_mask.size[0] * call.grad_mask.size[1];  // of all slices
    if (entries == 0) return "";
    const int64_t slices = call.grad_mask.size[0] / call.mask.size[0];
    p.steps = int(call.query.size[0] * p.heads / (call.mask.size[0] * p.mask_heads) * p.tiles_each);
    p.steps_each = int((p.steps + slices - 1) / slices);
    return with_kernel<MaskGradient>(call, call.dropout.on, [&](auto kernel) {
        using Kernel = decltype(kernel);
        return launch<Kernel>(gpu, entries * p.row_blocks * p.key_blocks, GROUP, Kernel::Layout::BYTES, p);
    });
}

template <class Parameters>
Parameters described(const EpilogueCall& call) {
    Parameters p{};
    p.projected = numbers_of(call.projected);
    p.output = numbers_of(call.output);
    p.result = numbers_of(call.out);
    p.best_head = call.best_head;
    p.heads = call.output.size[1];
    p.length = int(call.projected.size[2]);
    p.dim = int(call.projected.size[3]);
    p.width = int(call.output.size[3]);
    p.tile = call.tile;
    return p;
}

std::string add_best_head(const EpilogueCall& call, const Gpu& gpu) {
    const int64_t tokens = call.projected.size[0] * call.projected.size[2];
    if (tokens == 0) return "";
    if (call.gamma.data == nullptr)
        return launch<AddBestHead>(gpu, tokens, EPILOGUE_THREADS, 0, described<AddBestHeadParameters>(call));
    AddGatedHeadParameters p = described<AddGatedHeadParameters>(call);
    p.gamma = numbers_of(call.gamma);
    return launch<AddGatedHead>(gpu, tokens, EPILOGUE_THREADS, 0, p);
}

std::string best_head_gradient(const EpilogueGradientCall& call, const Gpu& gpu) {
    const int64_t tokens = call.grad.size[0] * call.grad.size[2];
    if (tokens == 0) return "";
    BestHeadGradientParameters p{};
    p.gradient = numbers_of(call.grad);
    p.best_gradient = numbers_of(call.grad_best);
    p.best_head = call.best_head;
    p.length = int(call.grad.size[2]);
    p.dim = int(call.grad.size[3]);
    p.width = int(call.grad_best.size[3]);
    p.tile = call.tile;
    return launch<BestHeadGradient>(gpu, tokens, EPILOGUE_THREADS, 0, p);
}

// The number of blocks of tokens that write partial sums of gamma's gradient.
inline int64_t gate_blocks(const GateGradientsCall& call) {
    return (call.grad.size[0] * call.grad.size[2] + GateGradients::ROWS_TAKEN - 1) / GateGradients::ROWS_TAKEN;
}

Workspace workspace(const GateGradientsCall& call) {
    Workspace needed;
    needed.partials = gate_blocks(call) * call.grad.size[3];
    return needed;
}

std::string gate_gradients(const GateGradientsCall& call, const Gpu& gpu, float* partials) {
    const int64_t tokens = call.grad.size[0] * call.grad.size[2], blocks = gate_blocks(call);
    if (tokens > INT_MAX - GateGradients::ROWS_TAKEN) return "take fewer than 2^31 tokens";
    GateGradientsParameters p{};
    p.gradient = numbers_of(call.grad);
    p.output = numbers_of(call.output);
    p.gamma = numbers_of(call.gamma);
    p.best_gradient = numbers_of(call.grad_best);
    p.best_head = call.best_head;
    p.heads = call.output.size[1];
    p.partials = partials;
    p.rows = int(tokens);
    p.length = int(call.grad.size[2]);
    p.dim = int(call.grad.size[3]);
    p.width = int(call.grad_best.size[3]);
    p.tile = call.tile;
    if (tokens > 0) {
        const std::string fault = launch<GateGradients>(gpu, blocks * GateGradients::chunks(p.width),
                                                        GateGradients::BLOCK_THREADS, GateGradients::SHARED_BYTES, p);
        if (!fault.empty()) return fault;
    }
    GammaGradientParameters g{};
    g.gamma_gradient = numbers_of(call.grad_gamma);
    g.partials = partials;
    g.blocks = int(blocks);
    g.dim = p.dim;
    return launch<GammaGradient>(gpu, GammaGradient::chunks(g.dim), GammaGradient::BLOCK_THREADS,
                                 GammaGradient::SHARED_BYTES, g);
}

}  // namespace rsattn::cuda
