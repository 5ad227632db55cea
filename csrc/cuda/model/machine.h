// One block of a GPU on a CPU. Every thread is a fiber with its own stack. It runs until it has to wait for others (a
// barrier, a shuffle, a product) and continues when all of them have arrived. `order` decides which thread runs next
// and when asynchronous instructions take effect, which exposes a kernel that depends on either.
#pragma once
#ifdef __SANITIZE_ADDRESS__
#include <dlfcn.h>
#endif
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace rsattn::cuda::model {

constexpr size_t STACK = 128 * 1024;

inline void jump(jmp_buf to) {
#ifdef __SANITIZE_ADDRESS__
    // The sanitizer's own _longjmp, and its check before any function that cannot return, take a system call and forget
    // what is known of the stack. Here the stacks are not checked, and libc's function behind a pointer has neither.
    static const auto libcs = reinterpret_cast<void (*)(jmp_buf, int)>(dlsym(dlopen("libc.so.6", RTLD_LAZY), "_longjmp"));
    libcs(to, 1);
#else
    _longjmp(to, 1);
#endif
}

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Threads that have arrived at the same point. The last to arrive does the work for all.
struct Meeting {
    using Work = void (*)(void** arguments, int count);
    Work work = nullptr;
    std::vector<int> here;
    void* arguments[1024];
};

// An mbarrier: a phase is complete when all threads and all expected bytes have arrived.
struct Barrier {
    int arrivals = 0, pending = 0;
    int64_t bytes = 0;
    int phase = 0;
    std::deque<std::function<void()>> copies;  // bulk copies in flight
    void advance() {
        if (pending == 0 && bytes == 0) {
            phase ^= 1;
            pending = arrivals;
        }
    }
};

class Block {
public:
    // order 0: the last ready thread runs first; 1: the first; others: random. Even: asynchronous instructions take
    // effect at once; odd: as late as allowed.
    Block(int threads, int shared_bytes, uint32_t order) : threads_(threads), order_(order), random_(order) {
        shared_bytes_ = (shared_bytes + 1023) / 1024 * 1024;
        shared_.reset(static_cast<char*>(std::aligned_alloc(1024, shared_bytes_ + 1024)));
        fibers_.resize(threads);
        for (Fiber& fiber : fibers_) fiber.stack.reset(new char[STACK]);
        warps_.resize((threads + 31) / 32);
        groups_.resize((threads + 127) / 128);
    }

    void run(int index, const std::function<void()>& program) {
        index_ = index;
        program_ = &program;
        // NaN in every type, as all memory that nothing has written.
        std::memset(shared_.get(), 0xFF, shared_bytes_ + 1024);
        barriers_.clear();
        ready_.clear();
        progress();
        for (int t = threads_ - 1; t >= 0; --t) {
            fibers_[t] = Fiber{std::move(fibers_[t].stack)};
            ready_.push_back(t);
        }
        int finished = 0;
        fault_.clear();
        while (finished < threads_) {
            if (ready_.empty()) throw Fault("the threads of a block wait for each other" + where_they_wait());
            current_ = next();
            if (!_setjmp(scheduler_)) enter(fibers_[current_]);
            if (!fault_.empty()) throw Fault(fault_);
            finished += fibers_[current_].finished;
            if (fibers_[current_].finished) progress();
        }
        for (const Meeting& meeting : warps_) expect(meeting.here.empty(), "a warp is left waiting");
        for (size_t i = shared_bytes_; i < size_t(shared_bytes_) + 1024; ++i)
            if (shared_.get()[i] != char(0xFF)) throw Fault("a store beyond the end of shared memory");
    }

    int thread() const { return current_; }
    int index() const { return index_; }
    bool late() const { return order_ % 2; }
    char* shared() const { return shared_.get(); }

    uint32_t address(const void* pointer) const { return uint32_t(static_cast<const char*>(pointer) - shared_.get()); }
    char* at(uint32_t address, uint32_t bytes) const {
        expect(address + bytes <= uint32_t(shared_bytes_), "an access outside shared memory");
        expect(address % (bytes < 16 ? bytes : 16) == 0, "a misaligned access to shared memory");
        return shared_.get() + address;
    }

    void expect(bool holds, const char* what) const {
        if (holds) return;
        fault_ = std::string(what) + ", thread " + std::to_string(current_) + " of block " + std::to_string(index_);
        jump(scheduler_);
    }

    void meet_warp(void* argument, Meeting::Work work) { meet(warps_[current_ / 32], 32, argument, work); }
    void meet_group(void* argument, Meeting::Work work) { meet(groups_[current_ / 128], 128, argument, work); }
    void meet_block() { meet(all_, threads_, nullptr, [](void**, int) {}); }

    void give_way() {
        expect(++idle_ < 1000 * threads_, "nothing is left that could end a wait for a barrier");
        ready_.insert(ready_.begin(), current_);
        suspend();
    }
    // Another thread may have changed something in the meantime.
    void progress() { idle_ = 0; }

    Barrier& barrier(uint32_t address) {
        at(address, 8);
        return barriers_[address];
    }

    // The groups of copies of a thread, and of products of a warpgroup, that have not taken effect.
    std::vector<std::vector<std::function<void()>>>& copies() { return fibers_[current_].copies; }
    std::vector<std::vector<std::function<void()>>>& products() { return fibers_[current_ / 128 * 128].products; }

private:
    struct Fiber {
        std::unique_ptr<char[]> stack;
        ucontext_t start{};
        jmp_buf state{};
        bool begun = false, finished = false;
        std::vector<std::vector<std::function<void()>>> copies{1}, products{1};
    };

    void meet(Meeting& meeting, int count, void* argument, Meeting::Work work) {
        if (meeting.here.empty()) meeting.work = work;
        expect(meeting.work == work, "threads that must act together do different things");
        meeting.arguments[current_ % count] = argument;
        meeting.here.push_back(current_);
        if (int(meeting.here.size()) < count) {
            suspend();
            return;
        }
        work(meeting.arguments, count);
        progress();
        for (int t : meeting.here)
            if (t != current_) ready_.push_back(t);
        meeting.here.clear();
    }

    int next() {
        size_t pick = ready_.size() - 1;
        if (order_ == 1) pick = 0;
        if (order_ > 1) pick = random_() % ready_.size();
        const int thread = ready_[pick];
        ready_.erase(ready_.begin() + long(pick));
        return thread;
    }

    void enter(Fiber& fiber) {
        if (fiber.begun) jump(fiber.state);
        fiber.begun = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        const uintptr_t self = reinterpret_cast<uintptr_t>(this);
        makecontext(&fiber.start, reinterpret_cast<void (*)()>(&Block::begin), 2, uint32_t(self), uint32_t(self >> 32));
        setcontext(&fiber.start);
    }

    static void begin(uint32_t low, uint32_t high) {
        Block& block = *reinterpret_cast<Block*>(uintptr_t(low) | uintptr_t(high) << 32);
        (*block.program_)();
        block.fibers_[block.current_].finished = true;
        jump(block.scheduler_);
    }

    void suspend() {
        if (!_setjmp(fibers_[current_].state)) jump(scheduler_);
    }

    std::string where_they_wait() const {
        std::string text;
        for (size_t w = 0; w < warps_.size(); ++w)
            if (!warps_[w].here.empty()) text += ", warp " + std::to_string(w) + " incomplete";
        if (!all_.here.empty()) text += ", " + std::to_string(all_.here.size()) + " threads at the block's barrier";
        return text;
    }

    int threads_, shared_bytes_, index_ = 0, current_ = 0, idle_ = 0;
    uint32_t order_;
    std::mt19937 random_;
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> shared_;
    std::vector<Fiber> fibers_;
    std::vector<Meeting> warps_, groups_;
    Meeting all_;
    std::vector<int> ready_;
    std::map<uint32_t, Barrier> barriers_;
    const std::function<void()>* program_ = nullptr;
    mutable jmp_buf scheduler_;
    mutable std::string fault_;
};

inline Block* running = nullptr;

}  // namespace rsattn::cuda::model
