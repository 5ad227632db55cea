// The peak rate of one core of this machine, and the rate of the CPU kernels' products:
//
//   g++ -O3 -std=gnu++17 -march=native -mprefer-vector-width=512 -ffp-contract=fast -fno-math-errno -fno-trapping-math
//       -Wno-psabi -Icsrc/cpu bench/ceiling.cpp -o /tmp/ceiling && /tmp/ceiling
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "pack.h"

using namespace rsattn;

void rsattn::parallel(int64_t tasks, int64_t, const void* context, Body body) { body(context, 0, tasks); }
int64_t rsattn::threads() { return 1; }

// The seconds of one call, from the fastest of 20 blocks of calls.
template <class F>
double fastest(int calls, F call) {
    double best = 1e9;
    for (int block = 0; block < 20; ++block) {
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) call();
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
        best = std::min(best, passed.count() / calls);
    }
    return best;
}

volatile float kept;  // so that the compiler does not remove the computation

// Twelve independent sums in registers, without memory accesses.
template <class Dot>
double arithmetic() {
    constexpr int SUMS = 12, STEPS = 100000;
    const double seconds = fastest(20, [] {
        Vec sums[SUMS];
        for (int i = 0; i < SUMS; ++i) sums[i] = broadcast(float(i));  // the compiler would compute equal sums only once
        WordVec a = (WordVec)broadcast(1.0001f);
        const WordVec b = (WordVec)broadcast(0.1f);
        for (int k = 0; k < STEPS; ++k) {
            asm volatile("" : "+v"(a));  // a possible change, so that the product stays in the loop
#pragma GCC unroll 12
            for (int i = 0; i < SUMS; ++i) sums[i] = Dot::dot(sums[i], a, b);
        }
        Vec total = sums[0];
        for (int i = 1; i < SUMS; ++i) total += sums[i];
        kept = sum(total);
    });
    return 2.0 * SUMS * STEPS * LANES * Dot::DEPTH / seconds * 1e-9;
}

uint32_t* words(int64_t count) { return static_cast<uint32_t*>(std::calloc(count + 1024, 4)); }

// 24 rows of scores, and the same rows times V, from operands in cache.
template <class Dot>
void products(const char* type, int64_t length) {
    constexpr int64_t ROWS = 24, WIDTH = 64;
    const Panels keys(length), channels(WIDTH);
    const Packed key{words(keys.columns() * WIDTH), keys, words_in<Dot>(WIDTH)};
    const Packed value{words(channels.columns() * length), channels, words_in<Dot>(length)};
    const Words queries{words(ROWS * WIDTH), WIDTH / Dot::DEPTH, 1};
    const Words weights{words(ROWS * keys.columns()), keys.columns() / Dot::DEPTH, 1};
    std::vector<float> scores(ROWS * keys.columns()), out(ROWS * channels.columns());
    const double flops = 2e-9 * ROWS * length * WIDTH;
    const double first = fastest(200, [&] {
        product<Dot, false>(ROWS, queries, key, 0, keys.count, 0, key.steps, scores.data(), keys.columns());
    });
    const double second = fastest(200, [&] {
        product<Dot, false>(ROWS, weights, value, 0, channels.count, 0, value.steps, out.data(), channels.columns());
    });
    std::printf("%s N = %lld: scores %.0f GFLOP/s (%.0f with padding), times V %.0f\n", type, (long long)length,
                flops / first, flops / first * keys.columns() / length, flops / second);
}

// Reads rows of 256 bytes from 64 MB, `stride` bytes apart: 9216 in packed QKV of 12 heads of 64 floats.
double rows_from_memory(int64_t stride) {
    static std::vector<char> memory(64 << 20, 1), to(1 << 14);
    int64_t bytes = 0;
    const double seconds = fastest(1, [&] {
        bytes = 0;
        for (int64_t column = 0; column < stride; column += 256)
            for (int64_t at = column; at + 256 <= int64_t(memory.size()); at += stride, bytes += 256)
                std::memcpy(to.data() + bytes % (1 << 14), memory.data() + at, 256);
        kept = to[0];
    });
    return bytes / seconds * 1e-9;
}

int main() {
    std::printf("float32 multiply-adds alone: %.0f GFLOP/s\n", arithmetic<Single>());
    for (int64_t length : {197, 577}) products<Single>("float32", length);
#if defined(__AVX512BF16__)
    std::printf("bfloat16 dot products alone: %.0f GFLOP/s\n", arithmetic<Pair>());
    for (int64_t length : {197, 577}) products<Pair>("bfloat16", length);
#endif
    std::printf("memory, in sequence: %.1f GB/s; rows of 256 bytes 9216 apart: %.1f GB/s\n", rows_from_memory(256),
                rows_from_memory(9216));
}
