"""What codesign predicts for a step through blocks: the sum of the predictions of all its kernels."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.engine import EngineClass
from codesign.cost.inference import step_parts
from codesign.cost.prediction import Prediction, add_stages
from codesign.cost.sheet import KernelSheet
from codesign.cost.step import Step
from codesign.cost.target import Target
from codesign.cost.workload import Workload
from codesign.errors import CodesignError
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_bandwidth, with_threads
from codesign.model.groups import fused_groups
from codesign.model.layers import Attention, Block, Layer, Model, Role
from codesign.profiler.blocks import ATTENTIONS
from codesign.profiler.candidates import Entry, RunPlan
from codesign.profiler.kernel import BlockCase
from codesign.schemes.capability import library_of
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

# 2 norms, rotary embedding of q and k 8, new keys and values 2, residuals 2, activation 2.
PROGRAM = EngineClass("blocks", True, True, 16.0, (), "operations counted in codesign/profiler/transformer.py")
PREDICTED = "predicted_s"  # the note of a record that holds the prediction made with it
KERNEL_SEPARATOR = "+"  # a kernel of blocks is named after its multiplication, then its attention


def predict_blocks(
    case: BlockCase,
    hardware: Hardware,
    library: str,
    kernel: str,
    sheets: tuple[KernelSheet, ...] = (),
    memory_bytes_per_s: float | None = None,
) -> Prediction:
    """Return the time of the step; CodesignError where the library or the scheme is not known to be here.

    `memory_bytes_per_s` is what a shared host's memory gave meanwhile, where that is known.
    """
    model, scheme = _model(case), parse_scheme(case.scheme)
    multiplication, _, attention = kernel.partition(KERNEL_SEPARATOR)
    machine = with_threads(hardware, case.threads) if hardware.kind == "cpu" else hardware
    target = Target(
        machine if memory_bytes_per_s is None else with_bandwidth(machine, memory_bytes_per_s),
        library_of(library, hardware).name,
        sheets=sheets,
        kernel=multiplication,
        program_library=next((one.library for one in ATTENTIONS if one.name == attention), ""),
    )
    groups = tuple(group for group in fused_groups(model) if group.block_index is not None)
    assignment = Assignment(groups, (scheme,) * len(groups), scheme, parse_kv(case.kv_format))
    deployment = Deployment(model, target, Workload(case.batch, case.context_tokens, 1), engine=PROGRAM)
    step = Step(case.batch, case.query_tokens, case.context_tokens)
    return add_stages(step_parts(deployment, assignment, step).values()).seconds


def with_predictions(plan: RunPlan, hardware: Hardware, sheets: tuple[KernelSheet, ...] = ()) -> RunPlan:
    """Return a plan of steps whose records will hold what was predicted of them, or why nothing was."""
    return replace(
        plan,
        blocks=tuple(
            tuple(
                replace(entry, notes=prediction_notes(partial(_predict_entry, entry, hardware, sheets)))
                for entry in block
            )
            for block in plan.blocks
        ),
    )


def _predict_entry(entry: Entry, hardware: Hardware, sheets: tuple[KernelSheet, ...]) -> Prediction:
    assert isinstance(entry.case, BlockCase)
    return predict_blocks(entry.case, hardware, entry.kernel.library, entry.kernel.name, sheets)


def prediction_notes(predict: Callable[[], Prediction]) -> Mapping[str, Any]:
    """Return a prediction as a record's notes hold it."""
    try:
        one = predict()
    except CodesignError as error:
        return {PREDICTED: None, "predicted_why": str(error)}
    return {PREDICTED: one.value, "predicted_low_s": one.low, "predicted_high_s": one.high, "origin": str(one.origin)}


def _model(case: BlockCase) -> Model:
    """Return the blocks as a model of which nothing else is multiplied."""
    nothing = Layer("none", "embedding", 1, case.sizes.hidden, "embedding")
    return Model(
        name=case.model,
        architecture="blocks",
        hidden=case.sizes.hidden,
        vocabulary=1,
        max_context_tokens=case.context_tokens,
        blocks=tuple(_block(case, index) for index in range(case.blocks)),
        embedding=nothing,
        head=nothing,
        tied_embedding=True,
        outside_layers=(),
        other_parameter_count=0,
        source="the sizes of a measured case",
        digest="",
    )


def _block(case: BlockCase, index: int) -> Block:
    one = case.sizes
    up: tuple[Role, ...] = ("gate", "up") if one.gated else ("up",)
    qkv_outputs = case.shapes["qkv"][0]
    layers = (
        Layer("qkv", "qkv", qkv_outputs, one.hidden, "qkv", index),
        Layer("o", "o", *case.shapes["o"], "o", index),
        *(Layer(role, role, one.intermediate, one.hidden, "gate_up", index) for role in up),
        Layer("down", "down", *case.shapes["down"], "down", index),
    )
    return Block(index, Attention(one.heads, one.kv_heads, one.head_dim), layers, None, 0)
