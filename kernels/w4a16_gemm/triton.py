"""out[m, n] = x[m, k] · wᵀ for 16 to 256 rows of half precision: 4-bit weights become halves on their way to tl.dot.

Weights lie as cuda.cu reads them (codesign/gpu/layout.py), so that both kernels share one copy. Scales and zero points
are [tiles, groups, 8, 2]; GROUP 0 has neither scales nor groups, only the float factor of each output.
"""

import triton
import triton.language as tl

TILE_OUTPUTS = tl.constexpr(16)
CHUNK = tl.constexpr(64)
TILE_WORDS = tl.constexpr(128)  # of 16 outputs and 64 inputs


@triton.jit
def load_codes(codes, first_tile, first_chunk, chunks, TILES: tl.constexpr, CHUNKS: tl.constexpr):
    """Return words [TILES, CHUNKS * 128] of some tiles, zeros beyond the last chunk."""
    word = tl.arange(0, CHUNKS * TILE_WORDS)
    tile = (first_tile + tl.arange(0, TILES)).to(tl.int64)
    place = (tile[:, None] * chunks + first_chunk) * TILE_WORDS + word[None, :]
    inside = (first_chunk + word // TILE_WORDS) < chunks
    return tl.load(codes + place, mask=inside[None, :], other=0)


@triton.jit
def halves_of(words, TILES: tl.constexpr, CHUNKS: tl.constexpr):
    """Return 1024 + code as halves [TILES * 16 outputs, CHUNKS * 64 inputs]: codes become their lowest bits.

    Neighbouring inputs are joined last: a thread then holds 8 of them side by side and stores them as 16 bytes.
    """
    rows = tl.join(words, words >> 4)
    pairs = (tl.join(rows, rows >> 8) & 0x000F000F) | 0x64006400
    low, high = pairs.to(tl.int16), (pairs >> 16).to(tl.int16)
    halves = tl.join(low.to(tl.float16, bitcast=True), high.to(tl.float16, bitcast=True))
    # tiles, chunks, lane g q, word h j, nibble r p e; see layout.pack_nibbles
    apart = tl.reshape(halves, (TILES, CHUNKS, 8, 4, 2, 2, 2, 2, 2))
    ordered = tl.permute(apart, (0, 6, 2, 1, 4, 3, 5, 7, 8))
    return tl.reshape(ordered, (TILES * TILE_OUTPUTS, CHUNKS * CHUNK))


@triton.jit
def multiply(
    x, codes, scales, zeros, factors, out, m, n, k, chunks, groups,
    GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK_M: tl.constexpr, TILES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write a block [BLOCK_M, TILES * 16] of the product; grid [n blocks, m blocks]."""
    BLOCK_N: tl.constexpr = TILES * TILE_OUTPUTS
    BLOCK_K: tl.constexpr = CHUNKS * CHUNK
    WIDTH: tl.constexpr = BLOCK_K if GROUP == 0 or GROUP > BLOCK_K else GROUP  # of the inputs that share a scale here
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    pair = output % 8 * 2 + output % TILE_OUTPUTS // 8
    column = tl.arange(0, BLOCK_K)
    part = tl.arange(0, BLOCK_K // WIDTH)
    x_rows = x + row.to(tl.int64)[:, None] * k
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for first in range(0, chunks, CHUNKS):
        inputs = first * CHUNK + column
        given = tl.load(x_rows + inputs[None, :], mask=(row[:, None] < m) & (inputs[None, :] < k), other=0.0)
        words = load_codes(codes, tl.program_id(0) * TILES, first, chunks, TILES, CHUNKS)
        weights = tl.reshape(halves_of(words, TILES, CHUNKS), (BLOCK_N, BLOCK_K // WIDTH, WIDTH))
        if GROUP == 0:
            group = 0 * part
        else:
            group = first * CHUNK // GROUP + part
        place = (output[:, None] // TILE_OUTPUTS * groups + group[None, :]) * TILE_OUTPUTS + pair[:, None]
        there = (group < groups)[None, :]
        if HAS_ZEROS:
            minus = 1024.0 + tl.load(zeros + place, mask=there, other=0).to(tl.float16)
            weights = weights - minus[:, :, None]
        else:
            weights = weights - 1032.0
        if GROUP > 0:
            weights = weights * tl.load(scales + place, mask=there, other=0.0)[:, :, None]
        sums = tl.dot(given, tl.trans(tl.reshape(weights, (BLOCK_N, BLOCK_K))), sums)
    sums = sums * tl.load(factors + output)[None, :]
    at = out + row.to(tl.int64)[:, None] * n + output[None, :]
    tl.store(at, sums.to(tl.float16), mask=(row[:, None] < m) & (output[None, :] < n))
