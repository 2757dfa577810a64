"""A server with continuous batching, simulated event by event.

Each step holds one token of every request that decodes and parts of prompts, up to a number of tokens (chunked
prefill); keys and values lie in blocks of tokens, and a request that finds none free is preempted and computed again.
Between events nothing but the context changes, so that any number of decode steps is one sum.
Follows the scheduler of vLLM (version 1 engine, vllm/v1/core/sched/scheduler.py).
"""

import heapq
import math
from array import array
from collections import deque
from dataclasses import replace

import numpy as np

from codesign.capacity.requests import Requests
from codesign.capacity.server import Served, Server
from codesign.capacity.step_table import StepTable
from codesign.cost.arrays import FloatArray, as_floats
from codesign.errors import InputError

TIMELINE_BINS = 240  # of the time in which requests arrive
BINS_MAX = 100 * TIMELINE_BINS


def simulate(requests: Requests, table: StepTable, server: Server) -> Served:
    """Return what one replica makes of requests that come when they come."""
    return _Replica(requests, table, server, None).run()


def simulate_closed(requests: Requests, table: StepTable, server: Server, in_flight: int) -> Served:
    """Return what one replica makes of a client that keeps so many requests in flight; arrival times are ignored."""
    if in_flight < 1:
        raise InputError(f"{in_flight} requests in flight serve nobody; give at least 1.")
    at_start = np.zeros(min(in_flight, len(requests)))
    return _Replica(replace(requests, arrival_s=at_start), table, server, in_flight).run()


def _taken_in(arrival_s: FloatArray, request_s: float) -> FloatArray:
    """Return when each request can be scheduled, if one after another takes `request_s` to be taken in."""
    before_s = request_s * np.arange(len(arrival_s))
    return as_floats(np.maximum.accumulate(arrival_s - before_s) + before_s + request_s)


class _Replica:
    """The state of one server: requests wait, have their prompt read, decode, finish; all by index."""

    def __init__(self, requests: Requests, table: StepTable, server: Server, in_flight: int | None) -> None:
        self.table, self.server = table, server
        self.closed = in_flight is not None
        self.host = server.host
        self.arrivals: list[float] = _taken_in(requests.arrival_s, server.host.request_s).tolist()
        self.raw_arrivals = array("d", requests.arrival_s)
        self.prompt: list[int] = requests.prompt_tokens.tolist()
        self.output: list[int] = requests.output_tokens.tolist()
        self.remaining: list[int] = list(self.output)  # tokens still to make
        self.count = len(self.prompt)
        nan = math.nan
        self.scheduled = array("d", [nan]) * self.count
        self.first = array("d", [nan]) * self.count
        self.finish = array("d", [nan]) * self.count
        self.preempted = array("q", [0]) * self.count
        self.now = self.seen_s = 0.0
        self.next_arrival = 0
        self.waiting: deque[int] = deque()
        self.partial: list[tuple[int, int]] = []  # a prompt read in part: request, tokens still to read
        # Decoding: a request ends at a decode step; the heap may hold requests that were preempted since.
        self.step = 0
        self.decoding = 0
        self.ends: list[tuple[int, int]] = []
        self.end_of: dict[int, int] = {}
        self.order: list[int] = []  # as they began to decode; those that ended are dropped when met
        self.context = 0  # tokens cached of all that decode
        self.phases = [0] * server.block_tokens  # decoding requests by the step at which they need a block
        self.shared_ready = server.shared_tokens == 0
        self.shared_blocks = server.shared_tokens // server.block_tokens
        self.capacity = server.capacity_blocks - self.shared_blocks
        self.used = 0
        self.peak = 0
        self.steps_taken = 0
        self.busy_s = 0.0
        self.token_steps = 0.0
        self.bin_s = math.inf if self.closed else max(self.arrivals[-1], 1e-9) / TIMELINE_BINS
        self.bins: list[int] = []

    # --- the loop ---

    def run(self) -> Served:
        """Serve everything and return what became of it."""
        while True:
            self._arrive()
            if not (self.decoding or self.partial or self.waiting):
                if self.next_arrival >= len(self.arrivals):
                    break
                self.now = self.seen_s = max(self.now, self.arrivals[self.next_arrival])
                continue
            chunks = self._take_prompts()
            if chunks:
                self._mixed_step(chunks)
            elif self.decoding:
                self._decode_steps()
            else:
                raise AssertionError("a request waits that fits nowhere")
        return self._served()

    def _arrive(self) -> None:
        """Queue what had arrived when the next step was decided on; what can never fit is left out."""
        arrivals, i, seen_s = self.arrivals, self.next_arrival, self.seen_s
        while i < len(arrivals) and arrivals[i] <= seen_s:
            if self._fits_ever(i):
                self.waiting.append(i)
            elif self.closed:
                self._next_of_client(arrivals[i])
            i += 1
        self.next_arrival = i

    def _fits_ever(self, i: int) -> bool:
        return self.server.blocks(self.prompt[i] + self.output[i] - self._shared_of(i)) <= self.capacity

    def _shared_of(self, i: int) -> int:
        """Return the tokens of a prompt that lie in shared blocks; the last token is always computed."""
        block = self.server.block_tokens
        return min(self.server.shared_tokens, (self.prompt[i] - 1) // block * block)

    def _take_prompts(self) -> list[tuple[int, int, int]]:
        """Return the parts of prompts that the next step reads: request, new tokens, tokens then cached."""
        budget = self.server.step_tokens - (0 if self.server.prefill_first else self.decoding)
        chunks: list[tuple[int, int, int]] = []
        left: list[tuple[int, int]] = []
        for i, rest in self.partial:
            new = min(rest, max(budget, 0))
            if new:
                chunks.append((i, new, self._length(i) - rest + new))
                budget -= new
            if rest > new:
                left.append((i, rest - new))
        running = self.decoding + len(self.partial)
        while self.waiting and budget > 0 and running < self.server.sequences_max:
            i = self.waiting[0]
            length = self._length(i)
            cached = self._shared_of(i) if self.shared_ready else 0
            blocks = self.server.blocks(length - self._shared_of(i))
            if self.used + blocks > self.capacity:
                break
            self.waiting.popleft()
            self._use(blocks)
            if self.scheduled[i] != self.scheduled[i]:
                self.scheduled[i] = self.now
            new = min(length - cached, budget)
            chunks.append((i, new, cached + new))
            if cached + new < length:
                left.append((i, length - cached - new))
            budget -= new
            running += 1
        self.partial = left
        return chunks

    def _length(self, i: int) -> int:
        """Return the tokens to read before a request decodes: its prompt, and what it made before a preemption."""
        return self.prompt[i] + self.output[i] - self.remaining[i]

    def _mixed_step(self, chunks: list[tuple[int, int, int]]) -> None:
        """Read the parts of prompts, and decode a token of the others beside them if steps are shared."""
        decodes = 0 if self.server.prefill_first else self.decoding
        if decodes:
            self._make_room(1)
            decodes = self.decoding
        context = self.context / decodes if decodes else 0.0
        seconds = self.table.mixed_s(decodes, context, ((new, cached) for _, new, cached in chunks))
        seconds += self._host_s(decodes + len(chunks))
        self._advance(seconds, 1, seconds)
        if decodes:
            self._grow(1)
        reading = {i for i, _ in self.partial}
        for i, _, cached in chunks:
            if i not in reading and cached == self._length(i):
                self._start_decoding(i)
        self._finish_due()

    def _decode_steps(self) -> None:
        """Take decode steps up to the next event: an end, an arrival, a knot of the table, no block left."""
        decoding = self.decoding
        context = self.context / decoding
        first_s, slope_s, knot = self.table.decode(decoding, context)
        first_s += self._host_s(decoding)
        count = self._next_end() - self.step
        if slope_s:
            count = min(count, max(1, math.ceil(knot - context)))
        if self.next_arrival < len(self.arrivals) and not self._is_full():
            until_s = max(0.0, self.arrivals[self.next_arrival] - self.now)
            a = first_s - slope_s / 2
            steps = 2 * until_s / (a + math.sqrt(a * a + 2 * slope_s * until_s))
            count = min(count, max(1, math.ceil(steps - 1e-9) + self.server.overlap))
        count = self._make_room(count)
        if self.decoding != decoding:  # some were preempted: one step of the others
            if not self.decoding:
                return
            first_s = self.table.decode(self.decoding, self.context / self.decoding)[0] + self._host_s(self.decoding)
        last_s = first_s + slope_s * (count - 1)
        self._advance(count * (first_s + last_s) / 2, count, last_s)
        self._grow(count)
        self._finish_due()

    def _host_s(self, sequences: int) -> float:
        return self.host.step_s + self.host.sequence_s * sequences

    def _is_full(self) -> bool:
        """Return whether an arrival could change nothing before a request ends."""
        return bool(self.waiting) or self.decoding >= self.server.sequences_max

    # --- time, contexts, blocks ---

    def _advance(self, seconds: float, steps: int, last_s: float) -> None:
        """Let so many steps pass, the last of which takes `last_s`."""
        self.now += seconds
        self.seen_s = self.now - last_s if self.server.overlap else self.now
        self.busy_s += seconds
        self.steps_taken += steps

    def _grow(self, steps: int) -> None:
        """Let every decoding request cache so many tokens; the blocks were found before."""
        self.context += steps * self.decoding
        self.token_steps += steps * self.decoding
        self.step += steps

    def _needed(self, steps: int) -> int:
        """Return the blocks that the next steps take."""
        size = self.server.block_tokens
        rounds, rest = divmod(steps, size)
        phases, step = self.phases, self.step
        return rounds * self.decoding + sum(phases[-(step + i) % size] for i in range(rest))

    def _make_room(self, steps: int) -> int:
        """Take the blocks of the next steps, of fewer if not all are free; preempt the newest where one is too many."""
        needed = self._needed(steps)
        if self.used + needed <= self.capacity:
            self._use(needed)
            return steps
        while steps > 1:
            steps //= 2
            needed = self._needed(steps)
            if self.used + needed <= self.capacity:
                self._use(needed)
                return steps
        while self.decoding and self.used + (needed := self._needed(1)) > self.capacity:
            self._preempt()
        self._use(needed if self.decoding else 0)
        return 1

    def _use(self, blocks: int) -> None:
        before, self.used = self.used, self.used + blocks
        self.peak = max(self.peak, self.used)
        bins, number = self.bins, int(self.now / self.bin_s)
        if number < len(bins):
            bins[number] = max(bins[number], self.used)
        elif number < BINS_MAX:
            bins.extend([before] * (number - len(bins)) + [self.used])

    # --- the life of a request ---

    def _start_decoding(self, i: int) -> None:
        """Give a request its next token, the first unless it was preempted; it decodes if more are to come."""
        if self.first[i] != self.first[i]:
            self.first[i] = self.now
        if not self.shared_ready:
            self.shared_ready = True
        cached = self._length(i)
        self.remaining[i] -= 1
        if self.remaining[i] == 0:
            self._free(self.server.blocks(cached - self._shared_of(i)))
            self._end(i)
            return
        end = self.step + self.remaining[i]
        heapq.heappush(self.ends, (end, i))
        self.end_of[i] = end
        self.order.append(i)
        self.decoding += 1
        self.context += cached
        self.phases[(cached - self.step) % self.server.block_tokens] += 1

    def _next_end(self) -> int:
        ends = self.ends
        while self.end_of.get(ends[0][1]) != ends[0][0]:
            heapq.heappop(ends)
        return ends[0][0]

    def _finish_due(self) -> None:
        """End the requests whose last token this step made."""
        ends, step = self.ends, self.step
        while ends and ends[0][0] <= step:
            end, i = heapq.heappop(ends)
            if self.end_of.get(i) == end:
                self._leave(i, end)
                self.remaining[i] = 0
                self._end(i)

    def _leave(self, i: int, end: int) -> int:
        """Take a request out of those that decode, and free its blocks; return the tokens that it had cached."""
        del self.end_of[i]
        cached = self.prompt[i] + self.output[i] - 1 - (end - self.step)
        self.decoding -= 1
        self.context -= cached
        self.phases[(cached - self.step) % self.server.block_tokens] -= 1
        self._free(self.server.blocks(cached - self._shared_of(i)))
        return cached

    def _free(self, blocks: int) -> None:
        self.used -= blocks

    def _preempt(self) -> None:
        """Put the newest request that decodes back to the front of the queue; what it made is computed again."""
        while (i := self.order.pop()) not in self.end_of:
            pass
        end = self.end_of[i]
        self._leave(i, end)
        self.remaining[i] = end - self.step
        self.preempted[i] += 1
        self.waiting.appendleft(i)

    def _end(self, i: int) -> None:
        self.finish[i] = self.now
        if self.closed:
            self._next_of_client(self.now)

    def _next_of_client(self, now_s: float) -> None:
        if len(self.arrivals) < self.count:
            self.raw_arrivals.append(now_s)
            self.arrivals.append(max(now_s, self.arrivals[-1]) + self.host.request_s)

    def _served(self) -> Served:
        occupied = np.array(self.bins, dtype=np.float64) / max(self.capacity, 1)
        return Served(
            arrival_s=np.array(self.raw_arrivals),
            prompt_tokens=np.array(self.prompt),
            output_tokens=np.array(self.output),
            scheduled_s=np.array(self.scheduled),
            first_token_s=np.array(self.first),
            finish_s=np.array(self.finish),
            preemptions=np.array(self.preempted),
            duration_s=self.now,
            step_count=self.steps_taken,
            busy_s=self.busy_s,
            decode_token_steps=self.token_steps,
            occupancy=occupied,
            peak_blocks=self.peak + self.shared_blocks,
        )
