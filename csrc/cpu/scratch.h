// The memory of one thread for one call: a single allocation, divided by the call's layout.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// With the address sanitizer, poisoned gaps lie between the parts. Without them it cannot detect an overrun into the
// next.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define RSATTN_FORBID(at, bytes) __asan_poison_memory_region(at, bytes)
#define RSATTN_GAP 64
#else
#define RSATTN_FORBID(at, bytes) (void)0
#define RSATTN_GAP 0
#endif

namespace rsattn {
namespace {

struct Arena {
    char* base = nullptr;
    int64_t used = 0;

    template <class T>
    T* take(int64_t count) {
        char* at = base + used;
        const int64_t bytes = count * int64_t(sizeof(T)), room = (bytes + RSATTN_GAP + 63) / 64 * 64;
        if (base) RSATTN_FORBID(at + bytes, room - bytes);
        used += room;
        return reinterpret_cast<T*>(at);
    }
};

// `Layout::lay(arena, ...)` takes its parts from the arena: first without memory, to find the size, then with it. With
// `Layout::ZEROED` the memory starts as zero, as padding requires.
template <class Layout>
struct Scratch : Layout {
    template <class... A>
    explicit Scratch(const A&... arguments) {
        Arena arena;
        this->lay(arena, arguments...);
        memory = static_cast<char*>(std::aligned_alloc(64, arena.used + 64));
        if (!memory) throw std::bad_alloc();
        if (Layout::ZEROED) std::memset(memory, 0, arena.used);
        arena = Arena{memory, 0};
        this->lay(arena, arguments...);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory); }

private:
    char* memory;
};

}  // namespace
}  // namespace rsattn
