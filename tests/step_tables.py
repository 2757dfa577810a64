"""Tables of steps with round numbers, and a server that is simulated one step at a time."""

import math
from collections import deque

from codesign.capacity.requests import Requests
from codesign.capacity.server import Server
from codesign.capacity.step_table import StepTable
from codesign.cost.origin import Origin


def even_table(
    token_s: float = 1e-6, sequence_s: float = 1e-5, step_s: float = 1e-3, context_s: float = 1e-9, floor_s: float = 0.0
) -> StepTable:
    """Return steps of `step_s`, plus so much per token, per sequence, per cached token of a sequence."""
    contexts, queries = [16.0, 64.0, 256.0, 1024.0, 65536.0], [2.0, 64.0, 8192.0]
    return StepTable(
        rows_s=[step_s + token_s * count for count in range(8193)],
        head_s=[sequence_s * count for count in range(513)],
        contexts=contexts,
        decode_attention_s=[[context_s * count * context for context in contexts] for count in range(513)],
        queries=queries,
        prompt_attention_s=[[context_s * query * context for context in contexts] for query in queries],
        floor_s=floor_s,
        added_s=0.0,
        origin=Origin.DATASHEET,
    )


class Stepwise:
    """The scheduler of codesign.capacity.simulate without any skipping, each request with blocks of its own."""

    def __init__(self, requests: Requests, table: StepTable, server: Server) -> None:
        self.table, self.server = table, server
        self.arrival = requests.arrival_s.tolist()
        self.prompt, self.output = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        self.made = [0] * len(self.prompt)
        self.cached = [0] * len(self.prompt)
        self.blocks = [0] * len(self.prompt)
        self.first, self.finish = [math.nan] * len(self.prompt), [math.nan] * len(self.prompt)
        self.preemptions = [0] * len(self.prompt)
        self.waiting: deque[int] = deque()
        self.reading: list[int] = []
        self.decoding: list[int] = []
        self.now, self.seen, self.peak = 0.0, 0.0, 0

    @property
    def used(self) -> int:
        """Return the blocks in use."""
        return sum(self.blocks)

    def length(self, i: int) -> int:
        """Return the tokens to read before a request decodes."""
        return self.prompt[i] + self.made[i]

    def run(self) -> "Stepwise":
        """Serve everything."""
        nxt = 0
        while nxt < len(self.arrival) or self.waiting or self.reading or self.decoding:
            if not (self.waiting or self.reading or self.decoding):
                self.now = self.seen = max(self.now, self.arrival[nxt])
            while nxt < len(self.arrival) and self.arrival[nxt] <= self.seen:
                self.waiting.append(nxt)
                nxt += 1
            before = self.now
            self.step()
            self.seen = before if self.server.overlap else self.now
        return self

    def step(self) -> None:
        """Take one step."""
        server, alone = self.server, self.server.prefill_first
        budget = server.step_tokens - (0 if alone else len(self.decoding))
        chunks: list[tuple[int, int]] = []
        for i in self.reading:
            new = min(self.length(i) - self.cached[i], max(budget, 0))
            if new:
                chunks.append((i, new))
                budget -= new
        while self.waiting and budget > 0 and len(self.decoding) + len(self.reading) < server.sequences_max:
            i = self.waiting[0]
            if self.used + server.blocks(self.length(i)) > server.capacity_blocks:
                break
            self.waiting.popleft()
            self.blocks[i] = server.blocks(self.length(i))
            self.reading.append(i)
            new = min(self.length(i), budget)
            chunks.append((i, new))
            budget -= new
        decoding = [] if chunks and alone else self.decode_room()
        self.peak = max(self.peak, self.used)
        context = sum(self.cached[i] for i in decoding) / len(decoding) if decoding else 0.0
        if chunks:
            parts = [(new, self.cached[i] + new) for i, new in chunks]
            self.now += self.table.mixed_s(len(decoding), context, parts)
        elif decoding:
            self.now += self.table.decode(len(decoding), context)[0]
        for i in decoding:
            self.cached[i] += 1
            self.make(i)
        for i, new in chunks:
            self.cached[i] += new
            if self.cached[i] == self.length(i):
                self.reading.remove(i)
                if math.isnan(self.first[i]):
                    self.first[i] = self.now
                self.decoding.append(i)
                self.make(i)

    def decode_room(self) -> list[int]:
        """Find a block for every request that needs one, preempting the newest, and return those that decode."""
        while True:
            need = [i for i in self.decoding if self.cached[i] == self.blocks[i] * self.server.block_tokens]
            if self.used + len(need) <= self.server.capacity_blocks:
                break
            victim = self.decoding.pop()
            self.blocks[victim] = self.cached[victim] = 0
            self.preemptions[victim] += 1
            self.waiting.appendleft(victim)
        for i in need:
            self.blocks[i] += 1
        return list(self.decoding)

    def make(self, i: int) -> None:
        """Make a token of a request."""
        self.made[i] += 1
        if self.made[i] == self.output[i]:
            self.decoding.remove(i)
            self.blocks[i] = 0
            self.finish[i] = self.now
