"""How one replica of a server schedules, and what became of the requests that it served."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codesign.capacity.requests import IntArray
from codesign.cost.arrays import FloatArray

BLOCK_TOKENS = 16  # of a KV cache in pages: vLLM's default (block_size)
SEQUENCES_MAX = 256  # vLLM's default (max_num_seqs) below its largest machines
STEP_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Seconds that a program takes beside the kernels.

    One request after another is taken in (`request_s`); every step takes `step_s`, and `sequence_s` for each sequence.
    """

    request_s: float = 0.0
    step_s: float = 0.0
    sequence_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Server:
    """How one replica schedules, and how many blocks of keys and values it holds.

    With `prefill_first` prompts get steps of their own, before any decoding (SGLang's default); else they share steps.
    With `overlap` the program decides on a step while the one before still runs, to keep the device busy: what arrives
    then has to wait for one step more.
    """

    capacity_blocks: int
    sequences_max: int = SEQUENCES_MAX
    step_tokens: int = STEP_TOKENS
    block_tokens: int = BLOCK_TOKENS
    prefill_first: bool = False
    overlap: bool = False
    host: HostTimes = HostTimes()
    shared_prefix_tokens: int = 0

    def blocks(self, tokens: int) -> int:
        """Return the blocks that so many tokens take."""
        return -(-tokens // self.block_tokens)

    @property
    def shared_tokens(self) -> int:
        """Return the tokens of the shared prefix that whole blocks hold; only those can be found again."""
        return self.shared_prefix_tokens // self.block_tokens * self.block_tokens


@dataclass(frozen=True, slots=True)
class Served:
    """What became of each request, in the order of arrival: seconds from the start; NaN where it never fits.

    `occupancy` is the largest share of the blocks in use in each of equal parts of `duration_s`.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    scheduled_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    preemptions: IntArray
    duration_s: float
    step_count: int
    busy_s: float
    decode_token_steps: float
    occupancy: FloatArray
    peak_blocks: int

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """Return which requests were served."""
        return np.isfinite(self.finish_s)

    @property
    def ttft_s(self) -> FloatArray:
        """Return the seconds to the first token of those served."""
        return (self.first_token_s - self.arrival_s)[self.done]

    @property
    def tpot_s(self) -> FloatArray:
        """Return the mean seconds per further token of those served with more than one."""
        more = self.done & (self.output_tokens > 1)
        return (self.finish_s - self.first_token_s)[more] / (self.output_tokens[more] - 1)

    @property
    def e2e_s(self) -> FloatArray:
        """Return the seconds to the last token of those served."""
        return (self.finish_s - self.arrival_s)[self.done]

    @property
    def queue_s(self) -> FloatArray:
        """Return the seconds until the prompt of those served was first taken up."""
        return (self.scheduled_s - self.arrival_s)[self.done]
