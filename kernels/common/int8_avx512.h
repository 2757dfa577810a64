// Pieces that the AVX-512 VNNI kernels share.
#pragma once

// GCC 12 warns of the undefined values inside its own intrinsics (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

// sum += four unsigned bytes of `weights` times four signed of `codes`, in each of 16 columns. Assembly, because GCC 12
// moves accumulators to the stack and back around the intrinsic, which halves the speed.
inline void dot(__m512i &sum, __m512i weights, __m512i codes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(codes));
}

// Asks for a line in the second-level cache. An address beyond the weights does no harm.
inline void fetch(const uint8_t *line) { _mm_prefetch((const char *)line, _MM_HINT_T1); }

// Four codes of one row for all columns.
inline __m512i codes_of_row(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

} // namespace
