"""Machines and models for tests: a round machine whose answers can be worked out by hand."""

from dataclasses import replace
from types import MappingProxyType

from codesign.hardware.hardware import Constraints, Hardware, Link, Memory, Power, Source
from codesign.model.layers import Attention, Block, Layer, Model

GIB = 2**30


def round_hardware(**changes: object) -> Hardware:
    """Return a GPU with 2 TB/s, 200 Tflop/s in 16 bits, nothing lost and no launch time, with changes."""
    machine = Hardware(
        name="round",
        title="Round GPU",
        kind="gpu",
        vendor="nvidia",
        architecture="none",  # no relative with a kernel sheet: predictions are plain arithmetic
        aliases=(),
        compute_capability=(8, 0),
        isa=frozenset(),
        unit_name="SM",
        unit_count=100,
        base_clock_hz=None,
        boost_clock_hz=1e9,
        flop_per_cycle_per_unit=MappingProxyType({}),
        peak_flop_per_s=MappingProxyType({"fp32": 20e12, "fp16": 200e12, "bf16": 200e12, "int8": 400e12}),
        sustained_compute_fraction=1.0,
        memory=Memory("HBM", 80 * GIB, 2e12, 1.0),
        cache=None,
        launch_overhead_s=0.0,
        peer_link=Link("NVLink", 300e9, 2e-6, 8),
        host_link=None,
        power=Power(400.0, 50.0),
        price_usd_per_hour=2.0,
        constraints=Constraints(),
        sources=MappingProxyType({"all": Source("made up for tests", "assumed", "low")}),
        digest="0",
    )
    return replace(machine, **changes)


def small_model(blocks: int = 4, hidden: int = 2048, intermediate: int = 5632, vocabulary: int = 32000) -> Model:
    """Return a Llama-like model with 16 heads of 128 and 4 KV heads."""
    made = []
    for i in range(blocks):
        at = f"model.layers.{i}"
        shapes = (
            ("self_attn.q_proj", "q", 2048, hidden, "qkv"),
            ("self_attn.k_proj", "k", 512, hidden, "qkv"),
            ("self_attn.v_proj", "v", 512, hidden, "qkv"),
            ("self_attn.o_proj", "o", hidden, 2048, "o"),
            ("mlp.gate_proj", "gate", intermediate, hidden, "gate_up"),
            ("mlp.up_proj", "up", intermediate, hidden, "gate_up"),
            ("mlp.down_proj", "down", hidden, intermediate, "down"),
        )
        layers = tuple(Layer(f"{at}.{name}", role, n, k, group, i) for name, role, n, k, group in shapes)
        made.append(Block(i, Attention(16, 4, 128), layers, None, 2 * hidden))
    return Model(
        name="small",
        architecture="llama",
        hidden=hidden,
        vocabulary=vocabulary,
        max_context_tokens=4096,
        blocks=tuple(made),
        embedding=Layer("model.embed_tokens", "embedding", vocabulary, hidden, "embedding"),
        head=Layer("lm_head", "head", vocabulary, hidden, "head"),
        tied_embedding=False,
        outside_layers=(),
        other_parameter_count=hidden,
        source="made up for tests",
        digest="small",
    )
