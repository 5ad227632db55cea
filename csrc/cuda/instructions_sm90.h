// Instructions of sm_90a only: bulk tensor copies, which an mbarrier in shared memory counts, and matrix products of a
// warpgroup (four warps), whose operands in shared memory are given by descriptors.
#pragma once
#include "instructions.h"

namespace rsattn::cuda {

RSATTN_INLINE void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialized barriers visible to the copy engine.
RSATTN_INLINE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
RSATTN_INLINE void barrier_arrive_expecting(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of that parity, 0 for the first, is complete.
RSATTN_INLINE void barrier_wait(uint32_t barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Copies a box of the tensor from (e, n, h, b) on, swizzled by 128 bytes; zeros outside the tensor.
RSATTN_INLINE void copy_box(uint32_t shared, const TensorMap* map, uint32_t barrier, int e, int n, int h, int b) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(shared),
        "l"(map), "r"(barrier), "r"(e), "r"(n), "r"(h), "r"(b)
        : "memory");
}

// Makes ordinary stores to shared memory visible to products and bulk copies.
RSATTN_INLINE void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

RSATTN_INLINE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
RSATTN_INLINE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
RSATTN_INLINE void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// The compiler may not move uses of an accumulator across this.
template <int COUNT>
RSATTN_INLINE void group_hold(float (&d)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
}
template <int COUNT>
RSATTN_INLINE void group_hold(uint32_t (&a)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[n][i])::"memory");
}

// d (64 x N, float32) = or += a (64 x 16) b (N x 16)^T, both in shared memory, with rows along the sum.
template <class Element, int COUNT>
RSATTN_INLINE void group_multiply(float (&d)[COUNT][4], uint64_t a, uint64_t b, bool accumulate);
// d (64 x N, float32) = or += a (64 x 16, registers) b (16 x N), b in shared memory, with rows along N.
template <class Element, int COUNT>
RSATTN_INLINE void group_multiply_transposed(float (&d)[COUNT][4], const uint32_t (&a)[4], uint64_t b, bool accumulate);

// Registers %0 to %7, %15, %31 or %63, and their accumulators.
#define RSATTN_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define RSATTN_REGISTERS_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define RSATTN_REGISTERS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RSATTN_REGISTERS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RSATTN_FOUR(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define RSATTN_FOUR_FOURS(n) RSATTN_FOUR(n), RSATTN_FOUR(n + 1), RSATTN_FOUR(n + 2), RSATTN_FOUR(n + 3)
#define RSATTN_EIGHT_FOURS(n) RSATTN_FOUR_FOURS(n), RSATTN_FOUR_FOURS(n + 4)

#define RSATTN_PRODUCTS(ELEMENT, NAME)                                                                                \
    template <>                                                                                                       \
    RSATTN_INLINE void group_multiply<ELEMENT>(float (&d)[2][4], uint64_t a, uint64_t b, bool accumulate) {           \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %10, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32." NAME "." NAME                                      \
                     " {" RSATTN_REGISTERS_16 "}, %8, %9, accumulate, 1, 1, 0, 0;\n}\n"                               \
                     : RSATTN_FOUR(0), RSATTN_FOUR(1)                                                                 \
                     : "l"(a), "l"(b), "r"(int(accumulate)));                                                         \
    }                                                                                                                 \
    template <>                                                                                                       \
    RSATTN_INLINE void group_multiply<ELEMENT>(float (&d)[4][4], uint64_t a, uint64_t b, bool accumulate) {           \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %18, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32." NAME "." NAME                                      \
                     " {" RSATTN_REGISTERS_32 "}, %16, %17, accumulate, 1, 1, 0, 0;\n}\n"                             \
                     : RSATTN_FOUR_FOURS(0)                                                                           \
                     : "l"(a), "l"(b), "r"(int(accumulate)));                                                         \
    }                                                                                                                 \
    template <>                                                                                                       \
    RSATTN_INLINE void group_multiply<ELEMENT>(float (&d)[8][4], uint64_t a, uint64_t b, bool accumulate) {           \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME                                      \
                     " {" RSATTN_REGISTERS_64 "}, %32, %33, accumulate, 1, 1, 0, 0;\n}\n"                             \
                     : RSATTN_EIGHT_FOURS(0)                                                                          \
                     : "l"(a), "l"(b), "r"(int(accumulate)));                                                         \
    }                                                                                                                 \
    template <>                                                                                                       \
    RSATTN_INLINE void group_multiply_transposed<ELEMENT>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b,       \
                                                          bool accumulate) {                                          \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %37, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME                                      \
                     " {" RSATTN_REGISTERS_64 "}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, 1;\n}\n"               \
                     : RSATTN_EIGHT_FOURS(0)                                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));                     \
    }                                                                                                                 \
    template <>                                                                                                       \
    RSATTN_INLINE void group_multiply_transposed<ELEMENT>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b,      \
                                                          bool accumulate) {                                          \
        asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %69, 0;\n"                                   \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME                                     \
                     " {" RSATTN_REGISTERS_128 "}, {%64, %65, %66, %67}, %68, accumulate, 1, 1, 1;\n}\n"              \
                     : RSATTN_EIGHT_FOURS(0), RSATTN_EIGHT_FOURS(8)                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));                     \
    }

RSATTN_PRODUCTS(float16, "f16")
RSATTN_PRODUCTS(bfloat16, "bf16")

}  // namespace rsattn::cuda
