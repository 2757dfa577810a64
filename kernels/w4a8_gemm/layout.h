// Where things lie in a packed panel; w4a8_gemm.h describes it.
#pragma once

#include "common/int8_job.h"

namespace {

// Bytes before the codes of a group: 16-bit scales, and zero points if asymmetric.
inline int64_t group_head_bytes(bool asymmetric) { return CODESIGN_INT8_COLUMNS * (asymmetric ? 3 : 2); }

inline int64_t group_length(int64_t k, int64_t group) { return group && group < k ? group : k; }

inline int64_t group_count(int64_t k, int64_t group) {
    const int64_t length = group_length(k, group);
    return (k + length - 1) / length;
}

inline int64_t panel_bytes(int64_t k, int64_t group, bool asymmetric) {
    return CODESIGN_INT8_FACTOR_BYTES + group_count(k, group) * group_head_bytes(asymmetric) + CODESIGN_INT8_COLUMNS * k / 2;
}

} // namespace
