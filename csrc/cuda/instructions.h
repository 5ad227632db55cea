// The GPU instructions that these kernels use, one function each, named as in the PTX manual ("Parallel Thread
// Execution ISA", version 8.0 and later, which defines the layouts of fragments and descriptors). model/instructions.h
// has the same functions for a CPU. A "shared" argument is an address in the block's shared memory.
#pragma once
#include <cstdint>

#if defined(RSATTN_MODEL)
#include "model/instructions.h"
#else
#include <cuda.h>

#define RSATTN_INLINE __device__ __forceinline__
#define RSATTN_LAYOUT __host__ __device__ constexpr  // where things lie, for kernels and launchers alike

namespace rsattn::cuda {

using TensorMap = CUtensorMap;

struct float16 {};
struct bfloat16 {};

RSATTN_INLINE int thread_index() { return int(threadIdx.x); }
RSATTN_INLINE int block_index() { return int(blockIdx.x); }

RSATTN_INLINE char* shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

RSATTN_INLINE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

RSATTN_INLINE void sync_block() { __syncthreads(); }

template <class T>
RSATTN_INLINE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

RSATTN_INLINE float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A product that is rounded, and not joined with a sum to one instruction.
RSATTN_INLINE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }

RSATTN_INLINE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Two rounded values, the first in the low half.
template <class Element>
RSATTN_INLINE uint32_t pack(float low, float high);
template <>
RSATTN_INLINE uint32_t pack<float16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <>
RSATTN_INLINE uint32_t pack<bfloat16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

template <class Element>
RSATTN_INLINE uint16_t round_to(float value) {
    return uint16_t(pack<Element>(value, 0.0f));
}

template <class Element>
RSATTN_INLINE float to_float(uint16_t bits);
template <>
RSATTN_INLINE float to_float<float16>(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
template <>
RSATTN_INLINE float to_float<bfloat16>(uint16_t bits) {
    return __uint_as_float(uint32_t(bits) << 16);
}

// Global memory that another block wrote: bypasses this multiprocessor's cache.
RSATTN_INLINE float load_from_l2(const float* pointer) { return __ldcg(pointer); }

// Increments `counter` and returns the old value. A block that arrives later, and reads after its barrier, sees what
// this block wrote before its own.
RSATTN_INLINE int arrive(int32_t* counter) {
    __threadfence();
    const int before = atomicAdd(counter, 1);
    __threadfence();
    return before;
}

// ---- copies to shared memory, 16 bytes a thread (sm_80)

// Zeros if `inside` is false; `from` is then not read.
RSATTN_INLINE void copy_async(uint32_t shared, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
RSATTN_INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` of this thread's latest groups are in flight.
template <int PENDING>
RSATTN_INLINE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- matrix products of a warp (sm_80)

// Four 8 x 8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
RSATTN_INLINE void load_matrices(uint32_t (&to)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}
RSATTN_INLINE void load_matrices_transposed(uint32_t (&to)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

// d (16 x 8, float32) += a (16 x 16) b (16 x 8)
template <class Element>
RSATTN_INLINE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
RSATTN_INLINE void multiply<float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
RSATTN_INLINE void multiply<bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace rsattn::cuda
#endif
