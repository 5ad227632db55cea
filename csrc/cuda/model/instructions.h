// The functions of ../instructions.h and ../instructions_sm90.h for model::Block. Fragments, descriptors and swizzling
// follow the PTX manual; nothing here depends on how the kernels lay out their tiles.
#pragma once
#include <cmath>

#include "machine.h"

#define RSATTN_INLINE inline
#define RSATTN_LAYOUT constexpr

namespace rsattn::cuda {

struct float16 {};
struct bfloat16 {};

// The arguments of cuTensorMapEncodeTiled: boxes of (e, n) of a (b, h, n, e) tensor of 16-bit elements.
struct TensorMap {
    const char* data = nullptr;
    int64_t size[4] = {}, stride[4] = {};  // e, n, h, b; strides in bytes
    int box_e = 0, box_n = 0;
};

inline model::Block& here() { return *model::running; }

inline int thread_index() { return here().thread(); }
inline int block_index() { return here().index(); }
inline char* shared_memory() { return here().shared(); }
inline uint32_t shared_address(const void* pointer) { return here().address(pointer); }
inline void sync_block() { here().meet_block(); }

template <class T>
T shuffle_xor(T value, int mask) {
    struct Exchange {
        T value;
        int mask;
        T result;
    } mine{value, mask, T()};
    here().meet_warp(&mine, [](void** all, int count) {
        for (int lane = 0; lane < count; ++lane) {
            Exchange& one = *static_cast<Exchange*>(all[lane]);
            one.result = static_cast<Exchange*>(all[lane ^ one.mask])->value;
        }
    });
    return mine.result;
}

inline float exp2_approximate(float x) { return std::exp2(x); }
inline float multiply_rounded(float a, float b) { return a * b; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

template <class Element>
uint16_t round_to(float value);
template <>
inline uint16_t round_to<float16>(float value) {
    const _Float16 half = _Float16(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
template <>
inline uint16_t round_to<bfloat16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
template <class Element>
uint32_t pack(float low, float high) {
    return uint32_t(round_to<Element>(low)) | uint32_t(round_to<Element>(high)) << 16;
}
template <class Element>
float to_float(uint16_t bits);
template <>
inline float to_float<float16>(uint16_t bits) {
    // A table, because the compiler would call a function for each conversion.
    static const std::vector<float> values = [] {
        std::vector<float> all(65536);
        for (uint32_t i = 0; i < 65536; ++i) {
            const uint16_t word = uint16_t(i);
            _Float16 half;
            std::memcpy(&half, &word, 2);
            all[i] = float(half);
        }
        return all;
    }();
    return values[bits];
}
template <>
inline float to_float<bfloat16>(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

inline float load_from_l2(const float* pointer) { return *pointer; }
inline int arrive(int32_t* counter) { return (*counter)++; }

inline void copy_async(uint32_t shared, const void* from, bool inside) {
    char* to = here().at(shared, 16);
    here().expect(!inside || reinterpret_cast<uintptr_t>(from) % 16 == 0, "a misaligned copy from global memory");
    auto copy = [=] {
        if (inside)
            std::memcpy(to, from, 16);
        else
            std::memset(to, 0, 16);
    };
    if (here().late())
        here().copies().back().push_back(copy);
    else
        copy();
}
inline void copy_commit() { here().copies().emplace_back(); }
template <int PENDING>
void copy_wait() {
    auto& groups = here().copies();
    while (groups.size() > PENDING + 1) {
        for (auto& copy : groups.front()) copy();
        groups.erase(groups.begin());
    }
}

template <bool TRANSPOSED>
void load_four(uint32_t (&to)[4], uint32_t shared) {
    struct Load {
        uint32_t shared;
        uint32_t* to;
    } mine{shared, to};
    here().meet_warp(&mine, [](void** all, int) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            uint16_t element[8][8];
            for (int row = 0; row < 8; ++row)
                std::memcpy(element[row], here().at(static_cast<Load*>(all[8 * matrix + row])->shared, 16), 16);
            for (int lane = 0; lane < 32; ++lane) {
                const int row = lane / 4, column = lane % 4 * 2;
                const uint16_t low = TRANSPOSED ? element[column][row] : element[row][column];
                const uint16_t high = TRANSPOSED ? element[column + 1][row] : element[row][column + 1];
                static_cast<Load*>(all[lane])->to[matrix] = uint32_t(low) | uint32_t(high) << 16;
            }
        }
    });
}
inline void load_matrices(uint32_t (&to)[4], uint32_t shared) { load_four<false>(to, shared); }
inline void load_matrices_transposed(uint32_t (&to)[4], uint32_t shared) { load_four<true>(to, shared); }

// The A operand of a warp, 16 x 16, from its fragments: register r of a lane has the row lane / 4 (+ 8 for r = 1, 3)
// and the columns 2 (lane % 4) and the next (+ 8 for r = 2, 3).
template <class Element>
void fragment_a(float (&a)[16][16], int lane, const uint32_t* registers) {
    for (int r = 0; r < 4; ++r)
        for (int half = 0; half < 2; ++half)
            a[lane / 4 + r % 2 * 8][lane % 4 * 2 + half + r / 2 * 8] =
                to_float<Element>(uint16_t(registers[r] >> 16 * half));
}

template <class Element>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Product {
        float* d;
        const uint32_t* a;
        uint32_t b[2];
    } mine{d, a, {b0, b1}};
    here().meet_warp(&mine, [](void** all, int) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Product& one = *static_cast<Product*>(all[lane]);
            fragment_a<Element>(a, lane, one.a);
            for (int r = 0; r < 2; ++r)
                for (int half = 0; half < 2; ++half)
                    b[lane % 4 * 2 + half + 8 * r][lane / 4] = to_float<Element>(uint16_t(one.b[r] >> 16 * half));
        }
        float sums[16][8] = {};
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i)
                static_cast<Product*>(all[lane])->d[i] += sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    });
}

// ---- sm_90a

inline void barrier_init(uint32_t barrier, int arrivals) {
    model::Barrier fresh;
    fresh.arrivals = fresh.pending = arrivals;
    here().barrier(barrier) = fresh;
}
inline void barrier_init_fence() {}
inline void barrier_arrive_expecting(uint32_t barrier, int bytes) {
    model::Barrier& it = here().barrier(barrier);
    here().expect(it.pending > 0, "an arrival that the barrier does not expect");
    --it.pending;
    it.bytes += bytes;
    it.advance();
    here().progress();
}
inline void barrier_wait(uint32_t barrier, int parity) {
    model::Barrier& it = here().barrier(barrier);
    here().expect(it.arrivals > 0, "waiting for a barrier that was never made");
    while (it.phase == parity) {
        if (!it.copies.empty()) {
            it.copies.front()();
            it.copies.pop_front();
        } else {
            here().give_way();
        }
    }
}

// Within every 1024 bytes of shared memory, 16-byte piece c of 128-byte row r is at c ^ r.
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void copy_box(uint32_t shared, const TensorMap* map, uint32_t barrier, int e, int n, int h, int b) {
    here().expect(shared % 128 == 0, "a bulk copy to an address that is no multiple of 128");
    here().expect(map->data != nullptr, "a bulk copy with an empty tensor map");
    auto copy = [=] {
        for (int row = 0; row < map->box_n; ++row)
            for (int piece = 0; piece < map->box_e * 2 / 16; ++piece) {
                uint16_t numbers[8] = {};
                for (int i = 0; i < 8; ++i) {
                    const int64_t at[4] = {e + 8 * piece + i, n + row, h, b};
                    bool inside = true;
                    int64_t offset = 2 * at[0];
                    for (int d = 0; d < 4; ++d) inside &= at[d] >= 0 && at[d] < map->size[d];
                    for (int d = 1; d < 4; ++d) offset += at[d] * map->stride[d];
                    if (inside) std::memcpy(&numbers[i], map->data + offset, 2);
                }
                std::memcpy(here().at(swizzle(shared + uint32_t(row * map->box_e * 2 + 16 * piece)), 16), numbers, 16);
            }
        model::Barrier& it = here().barrier(barrier);
        it.bytes -= map->box_n * map->box_e * 2;
        it.advance();
    };
    if (here().late())
        here().barrier(barrier).copies.push_back(copy);
    else
        copy();
}

inline void async_fence() {}
inline void group_begin() {
    here().meet_group(nullptr, [](void**, int) {});
}
inline void group_commit() {
    here().meet_group(nullptr, [](void**, int) { here().products().emplace_back(); });
}
template <int PENDING>
void group_wait() {
    here().meet_group(nullptr, [](void**, int) {
        auto& groups = here().products();
        while (groups.size() > PENDING + 1) {
            for (auto& product : groups.front()) product();
            groups.erase(groups.begin());
        }
    });
}
template <class Fragment>
void group_hold(Fragment&) {}

// An operand in shared memory, given by a descriptor for 128-byte swizzling. `across` counts along M or N, `along`
// counts along the sum. Elements lie along the sum in rows of 128 bytes, eight rows to a piece, pieces a stride offset
// apart. Or, transposed, they lie across it, 64 elements to a row, the next 64 a leading offset away, eight rows to a
// piece as before.
template <class Element>
float operand(uint64_t descriptor, bool transposed, int across, int along) {
    const uint32_t start = uint32_t(descriptor & 0x3FFF) << 4;
    const uint32_t leading = uint32_t(descriptor >> 16 & 0x3FFF) << 4, stride = uint32_t(descriptor >> 32 & 0x3FFF) << 4;
    here().expect(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "a descriptor not made for 128-byte swizzling");
    uint32_t address = start;
    if (transposed)
        address += uint32_t(across / 64) * leading + uint32_t(across % 64) * 2 + uint32_t(along / 8) * stride +
                   uint32_t(along % 8) * 128;
    else
        address += uint32_t(across / 8) * stride + uint32_t(across % 8) * 128 + uint32_t(along) * 2;
    uint16_t bits;
    std::memcpy(&bits, here().at(swizzle(address), 2), 2);
    return to_float<Element>(bits);
}

// The arguments of all 128 threads for d (64 x N) = or += a (64 x 16) b (16 x N).
template <int COUNT>
struct GroupProduct {
    float (*d)[4];
    const uint32_t* registers;  // of a; nullptr if it is in shared memory
    uint64_t a, b;
    bool accumulate;
};

template <class Element, int COUNT>
void group_product(GroupProduct<COUNT> mine) {
    here().meet_group(&mine, [](void** all, int) {
        std::vector<GroupProduct<COUNT>> threads;
        for (int t = 0; t < 128; ++t) threads.push_back(*static_cast<GroupProduct<COUNT>*>(all[t]));
        auto product = [threads] {
            float a[64][16], b[16][8 * COUNT];
            const GroupProduct<COUNT>& first = threads[0];
            for (int warp = 0; warp < 4; ++warp) {
                float part[16][16];
                for (int lane = 0; lane < 32 && first.registers; ++lane)
                    fragment_a<Element>(part, lane, threads[32 * warp + lane].registers);
                for (int i = 0; i < 16; ++i)
                    for (int k = 0; k < 16; ++k)
                        a[16 * warp + i][k] =
                            first.registers ? part[i][k] : operand<Element>(first.a, false, 16 * warp + i, k);
            }
            for (int k = 0; k < 16; ++k)
                for (int j = 0; j < 8 * COUNT; ++j) b[k][j] = operand<Element>(first.b, first.registers != nullptr, j, k);
            for (int t = 0; t < 128; ++t)
                for (int n = 0; n < COUNT; ++n)
                    for (int i = 0; i < 4; ++i) {
                        float sum = 0;
                        for (int k = 0; k < 16; ++k)
                            sum += a[t / 32 * 16 + t % 32 / 4 + i / 2 * 8][k] * b[k][8 * n + t % 4 * 2 + i % 2];
                        float& d = threads[t].d[n][i];
                        d = threads[t].accumulate ? d + sum : sum;
                    }
        };
        if (here().late())
            here().products().back().push_back(product);
        else
            product();
    });
}
template <class Element, int COUNT>
void group_multiply(float (&d)[COUNT][4], uint64_t a, uint64_t b, bool accumulate) {
    group_product<Element, COUNT>({d, nullptr, a, b, accumulate});
}
template <class Element, int COUNT>
void group_multiply_transposed(float (&d)[COUNT][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    group_product<Element, COUNT>({d, a, 0, b, accumulate});
}

}  // namespace rsattn::cuda
