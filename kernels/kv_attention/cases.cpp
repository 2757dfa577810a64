// Runs cases from a file: int64 isa, format, batch, heads, kv_heads, head_dim, q_tokens, tokens, threads; q [batch,
// heads, q_tokens, head_dim]; k, v [batch, kv_heads, tokens, head_dim]. Writes the outputs, NaN for refused calls.
#include "kv_attention.h"

#include "common/cases.h"

#include <cmath>
#include <cstdlib>

namespace {

// Exactly `bytes` that begin on a line of 64: the sanitizer sees the first byte behind them.
struct Lines {
    explicit Lines(int64_t bytes) : memory(std::aligned_alloc(64, std::size_t(bytes))) {}
    ~Lines() { std::free(memory); }
    void *memory;
};

bool run_one(FILE *source, FILE *target) {
    bool ended = false;
    const std::vector<int64_t> head = next<int64_t>(source, 9, &ended);
    if (ended) return false;
    const int64_t batch = head[2], head_dim = head[5], tokens = head[7];
    const codesign_kv_shape shape{int32_t(head[1]), int32_t(batch),   int32_t(head[3]), int32_t(head[4]),
                                  int32_t(head_dim), int32_t(head[6]), tokens};
    const int64_t out_count = batch * head[3] * head[6] * head_dim, kv_count = batch * head[4] * tokens * head_dim;
    const std::vector<float> q = next<float>(source, out_count, &ended);
    const std::vector<float> k = next<float>(source, kv_count, &ended);
    const std::vector<float> v = next<float>(source, kv_count, &ended);
    Lines cache(codesign_kv_attention_cache_bytes(&shape));
    Lines workspace(codesign_kv_attention_workspace_bytes(&shape, int32_t(head[8])));
    std::vector<int64_t> lengths(std::size_t(batch), 0);
    codesign_kv_attention_append(&shape, k.data(), v.data(), 0, tokens, lengths.data(), cache.memory);
    lengths.assign(std::size_t(batch), tokens);
    std::vector<float> out(std::size_t(out_count), NAN);
    codesign_kv_attention_run(int32_t(head[0]), &shape, q.data(), cache.memory, lengths.data(), out.data(), 0, 0.125f,
                              int32_t(head[8]), workspace.memory);
    return std::fwrite(out.data(), sizeof(float), out.size(), target) == out.size();
}

} // namespace

int main(int argc, char **argv) { return run_cases(argc, argv, run_one); }
