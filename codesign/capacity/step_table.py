"""Seconds of every step that a server can take, computed once from the cost model and then looked up."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.attention import block_attention
from codesign.cost.collectives import connecting_link
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.engine import host_s, is_own_host
from codesign.cost.kernels import KernelPrediction
from codesign.cost.origin import Origin
from codesign.cost.prediction import TRUST
from codesign.cost.step import Kernels, Step, communication_kernels, elementwise_kernels, group_kernel
from codesign.cost.traffic import ACTIVATION_BYTES

End = Literal["predicted_s", "low_s", "high_s"]
KNOT_RATIO = 2**0.5  # linear between knots so far apart: 3 % off where time grows with the square of the tokens
FIRST_CONTEXT, FIRST_QUERY = 16, 2


@dataclass(frozen=True, slots=True)
class StepTable:
    """Seconds of steps of one replica.

    `rows_s[t]` is what t tokens take in everything but the head and attention, `head_s[n]` the head for n sequences,
    `decode_attention_s[n][i]` attention of n sequences with `contexts[i]` tokens each, `prompt_attention_s[i][j]` that
    of `queries[i]` new tokens of one sequence that then has `contexts[j]`. A step takes at least `floor_s`, where a
    host has to issue it, and `added_s` more.
    """

    rows_s: list[float]
    head_s: list[float]
    contexts: list[float]
    decode_attention_s: list[list[float]]
    queries: list[float]
    prompt_attention_s: list[list[float]]
    floor_s: float
    added_s: float
    origin: Origin

    @property
    def tokens_max(self) -> int:
        """Return the most tokens of a step."""
        return len(self.rows_s) - 1

    @property
    def sequences_max(self) -> int:
        """Return the most sequences of a step."""
        return len(self.head_s) - 1

    def decode(self, sequences: int, context_tokens: float) -> tuple[float, float, float]:
        """Return the seconds of a decode step, how they grow per token of mean context, and up to which context."""
        contexts, row = self.contexts, self.decode_attention_s[sequences]
        i = bisect_right(contexts, context_tokens) - 1
        i = max(0, min(i, len(contexts) - 2))
        low, high = contexts[i], contexts[i + 1]
        slope = (row[i + 1] - row[i]) / (high - low)
        seconds = self.rows_s[sequences] + self.head_s[sequences] + row[i] + slope * (context_tokens - low)
        if seconds < self.floor_s:
            return self.floor_s + self.added_s, 0.0, high
        return seconds + self.added_s, slope, high

    def mixed_s(self, decodes: int, decode_context: float, chunks: Iterable[tuple[int, int]]) -> float:
        """Return the seconds of a step with `decodes` sequences and prompts' parts: new tokens, tokens then cached."""
        tokens = sequences = decodes
        attention_s = self._decode_attention_s(decodes, decode_context) if decodes else 0.0
        launch_s = self.prompt_attention_s[0][0]
        for number, (new_tokens, cached_tokens) in enumerate(chunks):
            tokens += new_tokens
            sequences += 1
            attention_s += self.prompt_s(new_tokens, cached_tokens) - (launch_s if number else 0.0)
        seconds = self.rows_s[tokens] + self.head_s[min(sequences, self.sequences_max)] + attention_s
        return max(seconds, self.floor_s) + self.added_s

    def _decode_attention_s(self, sequences: int, context_tokens: float) -> float:
        contexts, row = self.contexts, self.decode_attention_s[sequences]
        i = max(0, min(bisect_right(contexts, context_tokens) - 1, len(contexts) - 2))
        share = (context_tokens - contexts[i]) / (contexts[i + 1] - contexts[i])
        return row[i] + share * (row[i + 1] - row[i])

    def prompt_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Return the seconds of attention of one prompt's part, between the four knots around it."""
        queries, contexts, table = self.queries, self.contexts, self.prompt_attention_s
        i = max(0, min(bisect_right(queries, new_tokens) - 1, len(queries) - 2))
        j = max(0, min(bisect_right(contexts, cached_tokens) - 1, len(contexts) - 2))
        x = (new_tokens - queries[i]) / (queries[i + 1] - queries[i])
        y = (cached_tokens - contexts[j]) / (contexts[j + 1] - contexts[j])
        low = table[i][j] + y * (table[i][j + 1] - table[i][j])
        high = table[i + 1][j] + y * (table[i + 1][j + 1] - table[i + 1][j])
        return low + x * (high - low)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How large steps can get: tokens, sequences, tokens of one sequence."""

    tokens_max: int
    sequences_max: int
    context_max: int


def make_step_table(
    where: Deployment, assignment: Assignment, sizes: StepSizes, end: End = "predicted_s", pipeline: int = 1
) -> StepTable:
    """Return the table of a replica; with `pipeline` stages a step passes all of them and the links between.

    `end` chooses the predicted seconds or an end of their interval. CapabilityError if the target lacks a scheme.
    """
    tokens = np.arange(max(sizes.tokens_max, sizes.sequences_max) + 1, dtype=np.float64)
    tokens[0] = 1.0  # never looked up; keeps formulas away from nothing
    sequences = tokens[: sizes.sequences_max + 1]
    contexts = _knots(FIRST_CONTEXT, sizes.context_max)
    queries = _knots(FIRST_QUERY, sizes.tokens_max)
    floor_s, added_s = host_seconds(where, assignment, end)
    return StepTable(
        rows_s=rows_seconds(where, assignment, tokens, end, pipeline).tolist(),
        head_s=head_seconds(where, assignment, sequences, end).tolist(),
        contexts=contexts.tolist(),
        decode_attention_s=_decode_attention(where, assignment, sequences, contexts, end),
        queries=queries.tolist(),
        prompt_attention_s=_prompt_attention(where, assignment, queries, contexts, end),
        floor_s=floor_s,
        added_s=added_s,
        origin=max((one.origin for one, _ in _weights(where, assignment, tokens, False)), key=TRUST.index),
    )


def rows_seconds(
    where: Deployment, assignment: Assignment, tokens: FloatArray, end: End = "predicted_s", pipeline: int = 1
) -> FloatArray:
    """Return what steps of so many tokens take in everything but the head and attention, all stages together."""
    step = Step(tokens, 1, 1)
    model, target = where.model, where.target
    others = elementwise_kernels(model, target, step, where.engine) + communication_kernels(model, target, step)
    kernels = _weights(where, assignment, tokens, False) + others
    return _sum(kernels, end, tokens) + _passed_on_s(where, tokens, pipeline - 1)


def head_seconds(
    where: Deployment, assignment: Assignment, sequences: FloatArray, end: End = "predicted_s"
) -> FloatArray:
    """Return what the head takes for so many sequences."""
    return _sum(_weights(where, assignment, sequences, True), end, sequences)


def _passed_on_s(where: Deployment, tokens: FloatArray, times: int) -> FloatArray:
    """Return the seconds in which hidden states pass so many links between stages."""
    if times == 0:
        return np.zeros_like(tokens)
    link = connecting_link(where.target.hardware)
    message_bytes = tokens * where.model.hidden * ACTIVATION_BYTES
    return as_floats(times * (link.latency_s + message_bytes / link.bandwidth_bytes_per_s))


def _knots(first: int, last: int) -> FloatArray:
    """Return whole numbers from `first` to at least `last`, each about `KNOT_RATIO` times the one before."""
    count = max(1, int(np.ceil(np.log(max(last, first + 1) / first) / np.log(KNOT_RATIO))))
    return np.unique(np.rint(first * KNOT_RATIO ** np.arange(count + 1)))


def _weights(where: Deployment, assignment: Assignment, rows: FloatArray, of_head: bool) -> Kernels:
    """Return the multiplications of so many rows, those of the head or all others."""
    pairs = zip(assignment.groups, assignment.schemes, strict=True)
    counts = Counter((group.signature, scheme) for group, scheme in pairs if (group.name == "head") == of_head)
    groups = {group.signature: group for group in assignment.groups}
    step = Step(rows, 1, 1)
    return [(group_kernel(groups[key], scheme, where.target, step), float(n)) for (key, scheme), n in counts.items()]


def _sum(kernels: Kernels, end: End, like: FloatArray) -> FloatArray:
    total = np.zeros_like(like)
    for one, count in kernels:
        total = total + count * getattr(one, end)
    return total


def _decode_attention(
    where: Deployment, assignment: Assignment, sequences: FloatArray, contexts: FloatArray, end: End
) -> list[list[float]]:
    batch, context = (part.ravel() for part in np.meshgrid(sequences, contexts, indexing="ij"))
    total = attention_seconds(where, assignment, batch, 1, context, end).reshape(len(sequences), len(contexts))
    return [list(map(float, row)) for row in total]


def _prompt_attention(
    where: Deployment, assignment: Assignment, queries: FloatArray, contexts: FloatArray, end: End
) -> list[list[float]]:
    return [
        attention_seconds(
            where, assignment, np.ones_like(contexts), int(query), np.maximum(contexts, query), end
        ).tolist()
        for query in queries
    ]


def attention_seconds(
    where: Deployment,
    assignment: Assignment,
    batch: FloatArray,
    query: int,
    context: FloatArray,
    end: End = "predicted_s",
) -> FloatArray:
    """Return attention of all blocks: `query` new tokens in each of `batch` sequences that then hold `context`."""
    total = np.zeros_like(batch)
    for attention, count in Counter(block.attention for block in where.model.blocks).items():
        one: KernelPrediction = block_attention(where.target.program, assignment.kv, attention, batch, query, context)
        total = total + count * as_floats(getattr(one, end))
    return total


def host_seconds(where: Deployment, assignment: Assignment, end: End = "predicted_s") -> tuple[float, float]:
    """Return what a step takes at least and what is added to it, by a program that issues kernel after kernel."""
    if not where.engine.python_loop:
        return 0.0, 0.0
    hardware = where.target.hardware
    issued = host_s(where.engine, hardware, assignment.groups, assignment.schemes)
    seconds = {"predicted_s": issued.value, "low_s": issued.low, "high_s": issued.high}[end]
    return (0.0, seconds) if is_own_host(hardware) else (seconds, 0.0)
