// Memory of one thread for one call: a single allocation, cut into parts by the call's own layout.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace rsattn {
namespace {

struct Arena {
    char* base = nullptr;
    int64_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* at = reinterpret_cast<T*>(base + used);
        used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return at;
    }
};

// `Layout::lay(arena, ...)` takes what it needs: once without memory, which tells the size, then with it. All of it
// begins as zero, which is what padding has to be.
template <class Layout>
struct Scratch : Layout {
    template <class... A>
    explicit Scratch(const A&... arguments) {
        Arena arena;
        this->lay(arena, arguments...);
        memory = static_cast<char*>(std::aligned_alloc(64, arena.used + 64));
        if (!memory) throw std::bad_alloc();
        std::memset(memory, 0, arena.used);
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
