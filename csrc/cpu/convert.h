// Conversion of rows of any supported type to and from float32.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace rsattn {
namespace {

RSATTN_INLINE float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
RSATTN_INLINE uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

struct BFloat16 {
    uint16_t bits;
    RSATTN_INLINE operator float() const { return as_float(uint32_t(bits) << 16); }
    BFloat16() = default;
    RSATTN_INLINE explicit BFloat16(float x) {
        const uint32_t b = as_bits(x);
        bits = x != x ? 0x7fc0 : uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    }
};

// IEEE binary16 in software, because not all compilers support it.
struct Float16 {
    uint16_t bits;
    Float16() = default;
    RSATTN_INLINE operator float() const {
        const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
        if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
        // Half's exponent bias is 15, float's is 127. The product also normalizes subnormals.
        return as_float(sign | as_bits(as_float(rest << 13) * 0x1p112f));
    }
    RSATTN_INLINE explicit Float16(float x) {
        const uint32_t sign = as_bits(x) >> 16 & 0x8000;
        const float size = as_float(as_bits(x) & 0x7fffffff);
        uint32_t rest;
        if (x != x) {
            rest = 0x7e00;
        } else if (size >= 65520.0f) {
            rest = 0x7c00;
        } else if (size < 0x1p-14f) {
            rest = as_bits(size + 0.5f) - as_bits(0.5f);  // the sum rounds to a multiple of 2^-24
        } else {
            const uint32_t b = as_bits(size);
            rest = (b + 0xfff + (b >> 13 & 1) - (112u << 23)) >> 13;
        }
        bits = uint16_t(sign | rest);
    }
};

#if defined(__AVX512F__)
RSATTN_INLINE Vec widen(const Float16* p) { return _mm512_cvtph_ps(load_as<__m256i>(p)); }
#elif defined(__F16C__)
RSATTN_INLINE Vec widen(const Float16* p) { return _mm256_cvtph_ps(load_as<__m128i>(p)); }
#else
RSATTN_INLINE Vec widen(const Float16* p) {
    Vec v;
    for (int i = 0; i < LANES; ++i) v[i] = load_as<Float16>(p + i);
    return v;
}
#endif
RSATTN_INLINE Vec widen(const BFloat16* p) {
    return (Vec)(__builtin_convertvector(load_as<HalfVec>(p), WordVec) << 16);
}
RSATTN_INLINE Vec widen(const float* p) { return load(p); }

#if defined(__AVX512F__)
RSATTN_INLINE void narrow(Float16* p, Vec v) { store(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
RSATTN_INLINE void narrow(Float16* p, Vec v) { store(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#else
RSATTN_INLINE void narrow(Float16* p, Vec v) {
    for (int i = 0; i < LANES; ++i) store(p + i, Float16(v[i]));
}
#endif
RSATTN_INLINE void narrow(BFloat16* p, Vec v) {
#if defined(__AVX512BF16__)
    store(p, _mm512_cvtneps_pbh(v));
#else
    const WordVec b = (WordVec)v;
    const WordVec rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    const WordVec nan = WordVec{} + 0x7fc0u;
    store(p, __builtin_convertvector(v != v ? nan : rounded, HalfVec));
#endif
}
RSATTN_INLINE void narrow(float* p, Vec v) { store(p, v); }

// An element at any address, because storage may begin at any byte.
RSATTN_INLINE float number_at(const float* p) { return load_as<float>(p); }
RSATTN_INLINE float number_at(const Float16* p) { return load_as<Float16>(p); }
RSATTN_INLINE float number_at(const BFloat16* p) { return load_as<BFloat16>(p); }
RSATTN_INLINE double number_at(const double* p) { return load_as<double>(p); }

template <class T>
void read_row(float* to, const T* from, int64_t stride, int64_t count) {
    int64_t i = 0;
    if (stride == 1)
        for (; i + LANES <= count; i += LANES) store(to + i, widen(from + i));
    for (; i < count; ++i) to[i] = number_at(from + i * stride);
}

template <class T>
void write_row(T* to, const float* from, float scale, int64_t stride, int64_t count) {
    int64_t i = 0;
    if (stride == 1)
        for (; i + LANES <= count; i += LANES) narrow(to + i, load(from + i) * scale);
    for (; i < count; ++i) store(to + i * stride, T(from[i] * scale));
}

// The address of element (b, h, i, 0).
inline char* row_at(const View& view, int64_t b, int64_t h, int64_t i) {
    const int64_t offset = b * view.stride[0] + h * view.stride[1] + i * view.stride[2];
    return static_cast<char*>(view.data) + offset * size_of(view.type);
}

constexpr int64_t CACHE_LINE = 64;

// Asks for elements [first, first + count) of row (b, h, i), to be read soon: a processor does not foresee short reads
// from rows that lie far apart. Always inline, because GCC removes calls of a function that does nothing else.
RSATTN_INLINE void prefetch_row(const View& view, int64_t b, int64_t h, int64_t i, int64_t first, int64_t count) {
    if (view.stride[3] != 1) return;
    const int64_t size = size_of(view.type);
    const char *from = row_at(view, b, h, i) + first * size, *last = from + count * size - 1;
    for (; from < last; from += CACHE_LINE) __builtin_prefetch(from, 0, 2);
    __builtin_prefetch(last, 0, 2);
}

// Floats <- row (b, h, i).
inline void read_row(float* to, const View& from, int64_t b, int64_t h, int64_t i) {
    const char* row = row_at(from, b, h, i);
    const int64_t stride = from.stride[3], count = from.size[3];
    switch (from.type) {
        case Type::float32: return read_row(to, reinterpret_cast<const float*>(row), stride, count);
        case Type::float16: return read_row(to, reinterpret_cast<const Float16*>(row), stride, count);
        case Type::bfloat16: return read_row(to, reinterpret_cast<const BFloat16*>(row), stride, count);
        default: __builtin_unreachable();
    }
}

// Row (b, h, i) <- floats times `scale`, rounded once.
inline void write_row(const View& to, int64_t b, int64_t h, int64_t i, const float* from, float scale) {
    char* row = row_at(to, b, h, i);
    const int64_t stride = to.stride[3], count = to.size[3];
    switch (to.type) {
        case Type::float32: return write_row(reinterpret_cast<float*>(row), from, scale, stride, count);
        case Type::float16: return write_row(reinterpret_cast<Float16*>(row), from, scale, stride, count);
        case Type::bfloat16: return write_row(reinterpret_cast<BFloat16*>(row), from, scale, stride, count);
        default: __builtin_unreachable();
    }
}

}  // namespace
}  // namespace rsattn
