// The kernels of ../ on a CPU, one block at a time, in place of ../kernels.cu, for tests without a GPU.
// `rsattn_cuda_model::configure` sets the modeled GPU and the order in which its threads run.
#include "instructions.h"
#include "../backward.h"
#include "../column_sums.h"
#include "../forward.h"
#include "../kernels.h"
#include "../mask_gradient.h"

namespace rsattn::cuda {
namespace {

struct Settings {
    Gpu gpu;
    int64_t order = 0;  // model::Block's; negative: launches are recorded but do not run
    std::string launched;
} settings;

template <class Kernel>
struct Program {
    static constexpr const char* NAME = "epilogue";
    template <bool>
    static void run(const typename Kernel::Parameters& parameters) {
        Kernel::template run<void>(parameters);
    }
};
template <template <class, int, bool> class Kernel, class Element, int WIDTH, bool EXTRAS>
struct Program<Kernel<Element, WIDTH, EXTRAS>> {
    using K = Kernel<Element, WIDTH, EXTRAS>;
    template <template <class, int, bool> class Other>
    static constexpr bool IS = std::is_same<K, Other<Element, WIDTH, EXTRAS>>::value;
    static constexpr const char* NAME = IS<Forward>        ? "forward"
                                        : IS<ColumnSums>   ? "column_sums"
                                        : IS<Backward>     ? "backward"
                                                           : "mask_gradient";
    template <bool SM90>
    static void run(const typename K::Parameters& parameters) {
        if constexpr (SM90)
            K::template run<Stream90<Element, WIDTH>>(parameters);
        else
            K::template run<Stream80<Element, WIDTH>>(parameters);
    }
};

template <class Kernel>
std::string launch(const Gpu& gpu, int64_t blocks, int threads, int shared_bytes,
                   const typename Kernel::Parameters& parameters) {
    if (threads > Kernel::BLOCK_THREADS || threads % 32 != 0) return "the model was given a wrong number of threads";
    if (shared_bytes > gpu.shared_memory) return "the model has less shared memory than was asked for";
    settings.launched += std::string(Program<Kernel>::NAME) + " " + std::to_string(blocks) + " blocks of " +
                         std::to_string(threads) + " threads, " + std::to_string(shared_bytes) + " bytes\n";
    if (settings.order < 0) return "";
    try {
        model::Block block(threads, shared_bytes, uint32_t(settings.order));
        model::running = &block;
        const auto program = [&] {
            if (gpu.sm90)
                Program<Kernel>::template run<true>(parameters);
            else
                Program<Kernel>::template run<false>(parameters);
        };
        for (int64_t i = 0; i < blocks; ++i) block.run(int(settings.order % 2 ? blocks - 1 - i : i), program);
    } catch (const model::Fault& fault) {
        return fault.what();
    }
    return "";
}

std::string encode(TensorMap& map, const View& view) {
    map.data = static_cast<const char*>(view.data);
    for (int d = 0; d < 4; ++d) {
        map.size[d] = view.size[3 - d];
        map.stride[d] = view.size[3 - d] == 1 ? 16 : view.stride[3 - d] * 2;
        if (d > 0 && (map.stride[d] % 16 != 0 || map.stride[d] <= 0)) return "a tensor map with a stride it cannot have";
    }
    if (reinterpret_cast<uintptr_t>(map.data) % 16 != 0) return "a tensor map of a misaligned tensor";
    map.box_e = PANEL;
    map.box_n = ROWS;
    return "";
}

}  // namespace
}  // namespace rsattn::cuda

#include "../launch.h"

namespace rsattn::cuda {

std::string build() { return "a model"; }
std::string missing(int) { return ""; }
Gpu gpu(int) { return settings.gpu; }

}  // namespace rsattn::cuda

#include "../operators.cpp"

namespace rsattn::cuda {
namespace {

// `shared_memory`: the most bytes of a block.
void configure(bool sm90, int64_t shared_memory, int64_t order) {
    settings.gpu.sm90 = sm90;
    settings.gpu.shared_memory = int(shared_memory);
    settings.order = order;
    settings.launched.clear();
}

// The launches since then.
std::string launched() { return settings.launched; }

// A kernel that breaks a rule of the machine.
struct Breaking {
    struct Parameters {
        std::string rule;
    };
    static constexpr int BLOCK_THREADS = 128;

    template <class>
    static void run(const Parameters& p) {
        char* memory = shared_memory();
        const bool first = thread_index() == 0;
        if (p.rule == "a barrier some threads never reach" && !first) sync_block();
        if (p.rule == "different instructions in one warp") {
            if (first)
                shuffle_xor(1, 1);
            else
                shuffle_xor(1.0f, 1);
        }
        if (p.rule == "memory beyond the block's" && first) memory[1024] = 0;
        if (p.rule == "a misaligned row" && thread_index() < 32) {
            uint32_t to[4];
            load_matrices(to, shared_address(memory) + 8);
        }
        if (p.rule == "a copy to a misaligned tile" && first) {
            barrier_init(shared_address(memory), 1);
            copy_box(shared_address(memory) + 64, nullptr, shared_address(memory), 0, 0, 0, 0);
        }
        if (p.rule == "a wait for a barrier that was never made" && first) barrier_wait(shared_address(memory), 0);
        if (p.rule == "a wait that nothing ends") {
            if (first) barrier_init(shared_address(memory), 1);
            sync_block();
            barrier_wait(shared_address(memory), 0);
        }
        if (p.rule == "a barrier with too many arrivals" && first) {
            barrier_init(shared_address(memory), 2);
            for (int i = 0; i < 3; ++i) barrier_arrive_expecting(shared_address(memory), 16);
        }
        if (p.rule == "a descriptor without swizzling") {
            float d[2][4] = {};
            group_multiply<bfloat16>(d, 0, 0, false);
        }
    }
};

// The error that the model reports; empty if there is none.
std::string broken(std::string rule) { return launch<Breaking>(settings.gpu, 1, 128, 1024, {rule}); }

}  // namespace
}  // namespace rsattn::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(rsattn_cuda_model, m) {
    m.def("configure(bool sm90, int shared_memory, int order) -> ()");
    m.def("launched() -> str");
    m.def("broken(str rule) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(rsattn_cuda_model, CompositeExplicitAutograd, m) {
    m.impl("configure", TORCH_BOX(&rsattn::cuda::configure));
    m.impl("launched", TORCH_BOX(&rsattn::cuda::launched));
    m.impl("broken", TORCH_BOX(&rsattn::cuda::broken));
}
