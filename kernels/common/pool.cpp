#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace {

// A worker spins this often before it sleeps: about 50 us, more than the gap between two layers of a small model.
constexpr int SPINS = 20000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::vector<int> allowed_processors() {
    std::vector<int> found;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set)) found.push_back(i);
#endif
    if (found.empty())
        for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); i++) found.push_back(int(i));
    return found;
}

void pin(const std::vector<int> &processors, int thread) {
#if defined(__linux__)
    if (thread >= int(processors.size())) return; // more threads than processors: leave them to the scheduler
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processors[size_t(thread)], &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)processors;
    (void)thread;
#endif
}

struct Order {
    codesign_task task;
    void *context;
    int threads;
};

class Pool {
  public:
    void run(int threads, codesign_task task, void *context) {
        std::lock_guard<std::mutex> one_at_a_time(entry_);
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            order_ = {task, context, threads};
            left_.store(threads - 1, std::memory_order_relaxed);
            turn_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        task(context, 0, threads);
        while (left_.load(std::memory_order_acquire) > 0) relax();
    }

  private:
    void grow(int wanted) {
        while (workers_ < wanted) {
            workers_++;
            std::thread(&Pool::work, this, workers_, turn_.load()).detach();
        }
    }

    void work(int thread, uint64_t seen) {
        pin(processors_, thread);
        for (;;) {
            for (int i = 0; i < SPINS && turn_.load(std::memory_order_acquire) == seen; i++) relax();
            Order order;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return turn_.load(std::memory_order_acquire) != seen; });
                seen = turn_.load(std::memory_order_acquire);
                order = order_;
            }
            if (thread >= order.threads) continue;
            order.task(order.context, thread, order.threads);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    const std::vector<int> processors_ = allowed_processors();
    std::mutex entry_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> turn_{0};
    std::atomic<int> left_{0};
    Order order_{};
    int workers_ = 0;
};

// Never destroyed: workers may still sleep in it when the process ends. A forked child has no workers and gets its own.
Pool &pool() {
    static std::mutex guard;
    static Pool *one = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(guard);
    if (!one || owner != getpid()) {
        one = new Pool;
        owner = getpid();
    }
    return *one;
}

} // namespace

void codesign_parallel(int32_t threads, codesign_task task, void *context) {
    if (threads <= 1) {
        task(context, 0, 1);
        return;
    }
    pool().run(threads, task, context);
}

int32_t codesign_processors(void) {
    return int32_t(allowed_processors().size());
}
