"""Print what transformers needs on a CPU beside multiplications and attention: constants of codesign/cost/engine.py.

    python scripts/host_cycles.py CLOCK_GHZ

HOST_CYCLES_PER_KERNEL: decode steps of Llama models so small that nothing but issuing counts; two depths, so that what
a step costs once falls out. HOST_COLD_S_PER_KERNEL: what is added when every linear layer reads that much memory
first, as layers do that exceed the last-level cache; the reading itself is not counted. Processor time of one thread,
which others on the machine do not disturb.

EAGER_CYCLES_PER_ELEMENT: what all other operations of a block add for each token and element that a fused
implementation would read or write (`elements_per_token`), from a prompt of one token to one of 256.
"""

import statistics
import sys
import tempfile
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codesign.cost.engine import ENGINE_CLASSES
from codesign.cost.step import elements_per_token
from codesign.model.file import load_model
from codesign.native import load
from codesign.units import GIGA, MEBI, MICRO

LINEAR_LAYERS_PER_BLOCK = 7
KERNELS = LINEAR_LAYERS_PER_BLOCK + ENGINE_CLASSES["eager"].other_kernels_per_block
DEPTHS = (4, 16)
STEPS, SKIPPED = 60, 10
STREAMED_MIB = (1, 2, 4, 8, 16, 32, 64, 128)
REPEATS = 3
HIDDEN_SIZES, HEAD_DIM, PROMPT_TOKENS, PROMPTS = (512, 1024, 2048), 64, (1, 256), 15
NOT_ELEMENTWISE = {"aten::mm", "attention"}  # words of the names of operations


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


def other_operations_s(config: LlamaConfig, tokens: int) -> float:
    """Return the seconds of a prompt in everything but multiplications and attention."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.zeros((1, tokens), dtype=torch.int64)
    found = []
    for _ in range(PROMPTS):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
        events = [one for one in profile.key_averages() if one.key.startswith("aten::")]
        found.append(sum(one.self_cpu_time_total for one in events if not NOT_ELEMENTWISE & set(one.key.split("_"))))
    return statistics.median(found) * MICRO


def element_s(hidden: int) -> float:
    """Return the seconds per element that blocks of a hidden size add when a prompt gets longer."""
    heads = hidden // HEAD_DIM
    configs = [
        LlamaConfig(hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=blocks,
                    num_attention_heads=heads, num_key_value_heads=heads, vocab_size=128)
        for blocks in (2, 6)
    ]  # fmt: skip
    few, many = ([other_operations_s(one, tokens) for tokens in PROMPT_TOKENS] for one in configs)
    elements = 0.0
    for config, sign in zip(configs, (-1, 1), strict=True):
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            elements += sign * elements_per_token(load_model(folder))
    return ((many[1] - few[1]) - (many[0] - few[0])) / elements / (PROMPT_TOKENS[1] - PROMPT_TOKENS[0])


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
    clock_hz = float(sys.argv[1]) * GIGA
    stream = Stream()
    with torch.no_grad():
        for hidden in HIDDEN_SIZES:
            each_s = element_s(hidden)
            print(f"hidden size {hidden}: {each_s * 1e9:.2f} ns per element, {each_s * clock_hz:.2f} cycles")
        warm_s = kernel_s(stream)
        cycles = warm_s * clock_hz
        print(f"{warm_s / MICRO:.1f} us per kernel, {KERNELS:g} of a block: {cycles:,.0f} cycles")
        for mib in STREAMED_MIB:
            stream.read_bytes = mib * MEBI
            print(f"{mib:4d} MiB read before each layer: {(kernel_s(stream) - warm_s) / MICRO:+.1f} us per kernel")


if __name__ == "__main__":
    main()
