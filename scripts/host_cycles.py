"""Print the cycles in which transformers issues one kernel on a CPU, HOST_CYCLES_PER_KERNEL of codesign/cost/engine.py.

    python scripts/host_cycles.py CLOCK_GHZ

Decode steps of Llama models so small that nothing but issuing counts; two depths, so that what a step costs once falls
out. Processor time of one thread, which others on the machine do not disturb.
"""

import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codesign.cost.engine import ENGINE_CLASSES
from codesign.units import GIGA

LINEAR_LAYERS_PER_BLOCK = 7
DEPTHS = (4, 16)
STEPS, SKIPPED = 60, 10


def step_s(blocks: int) -> float:
    """Return the median seconds of one further token."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    out = model(input_ids=torch.zeros((1, 16), dtype=torch.int64), use_cache=True)
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[SKIPPED:])


def main() -> None:
    """Print seconds per block and cycles per kernel."""
    torch.set_num_threads(1)
    with torch.no_grad():
        few, many = (step_s(blocks) for blocks in DEPTHS)
    block_s = (many - few) / (DEPTHS[1] - DEPTHS[0])
    kernels = LINEAR_LAYERS_PER_BLOCK + ENGINE_CLASSES["eager"].other_kernels_per_block
    cycles = block_s / kernels * float(sys.argv[1]) * GIGA
    print(f"{1e3 * block_s:.3f} ms per block of {kernels:g} kernels: {cycles:,.0f} cycles each")


if __name__ == "__main__":
    main()
