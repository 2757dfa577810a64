"""Print what transformers needs to issue one kernel on a CPU: two constants of codesign/cost/engine.py.

    python scripts/host_cycles.py CLOCK_GHZ

HOST_CYCLES_PER_KERNEL: decode steps of Llama models so small that nothing but issuing counts; two depths, so that what
a step costs once falls out. HOST_COLD_S_PER_KERNEL: what is added when every linear layer reads that much memory
first, as layers do that exceed the last-level cache; the reading itself is not counted. Processor time of one thread,
which others on the machine do not disturb.
"""

import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codesign.cost.engine import ENGINE_CLASSES
from codesign.native import load
from codesign.units import GIGA, MEBI, MICRO

LINEAR_LAYERS_PER_BLOCK = 7
KERNELS = LINEAR_LAYERS_PER_BLOCK + ENGINE_CLASSES["eager"].other_kernels_per_block
DEPTHS = (4, 16)
STEPS, SKIPPED = 60, 10
STREAMED_MIB = (1, 2, 4, 8, 16, 32, 64, 128)
REPEATS = 3


class Stream:
    """Reads so many bytes before a layer, and knows how long that took."""

    def __init__(self) -> None:
        self._native = load()
        self._memory = self._native.pages_alloc(max(STREAMED_MIB) * MEBI)
        self._isa = self._native.isa_best()
        self.read_bytes, self.spent_s = 0, 0.0

    def __call__(self, *_: object) -> None:
        """Read; a hook of a layer."""
        started = time.process_time()
        if self.read_bytes:
            self._native.roof_read(self._isa, self._memory, self.read_bytes, 1, 1)
        self.spent_s += time.process_time() - started


def step_s(blocks: int, stream: Stream) -> float:
    """Return the median seconds of one further token without what the stream took."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(stream)
    out = model(input_ids=torch.zeros((1, 16), dtype=torch.int64), use_cache=True)
    seconds = []
    for _ in range(STEPS):
        started, before_s = time.process_time(), stream.spent_s
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        seconds.append(time.process_time() - started - (stream.spent_s - before_s))
    return statistics.median(seconds[SKIPPED:])


def kernel_s(stream: Stream) -> float:
    """Return the seconds of one kernel in the middle of a model, the median of repeats."""
    found = []
    for _ in range(REPEATS):
        few, many = (step_s(blocks, stream) for blocks in DEPTHS)
        found.append((many - few) / (DEPTHS[1] - DEPTHS[0]) / KERNELS)
    return statistics.median(found)


def main() -> None:
    """Print cycles per kernel, and what is added by the memory read before each layer."""
    torch.set_num_threads(1)
    stream = Stream()
    with torch.no_grad():
        warm_s = kernel_s(stream)
        cycles = warm_s * float(sys.argv[1]) * GIGA
        print(f"{warm_s / MICRO:.1f} us per kernel, {KERNELS:g} of a block: {cycles:,.0f} cycles")
        for mib in STREAMED_MIB:
            stream.read_bytes = mib * MEBI
            print(f"{mib:4d} MiB read before each layer: {(kernel_s(stream) - warm_s) / MICRO:+.1f} us per kernel")


if __name__ == "__main__":
    main()
