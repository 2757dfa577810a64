"""Whether a tool can make a plan for its machine, and which wider scheme can stand in where it cannot."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from codesign.cost.deployment import Deployment, group_problem, shard_outputs
from codesign.errors import InputError
from codesign.model.groups import FusedGroup
from codesign.model.layers import Attention
from codesign.plan.recipes.modules import group_modules
from codesign.plan.recipes.tool import Tool
from codesign.quality.methods import method_for
from codesign.schemes.capability import baseline_scheme, library_capability
from codesign.schemes.catalog import SCHEMES
from codesign.schemes.scheme import PerBlock, Scheme

SAME_BITS = 0.01  # per weight; scales of FP8 blocks and channels differ by less


@dataclass(frozen=True, slots=True)
class Choice:
    """The scheme of one fused group and the method it is made with."""

    group: FusedGroup
    scheme: Scheme
    method: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """A group that takes a wider scheme than planned, and why."""

    label: str
    planned: str
    promoted: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    """A tool, and the deployment that its product runs in; `known_kernels` is False where no table covers it."""

    tool: Tool
    deployment: Deployment
    known_kernels: bool

    def problem(self, group: FusedGroup, scheme: Scheme, method: str) -> str | None:
        """Return why the group cannot have the scheme, or None."""
        if not scheme.quantized:
            return None
        return (
            self.tool.problem(scheme, method)
            or self.tool.machine_problem(scheme, self.deployment.target.hardware)
            or self._kernel_problem(scheme)
            or group_problem(group, scheme, self.deployment)
            or _shard_problem(group, scheme, self.deployment)
        )

    def _kernel_problem(self, scheme: Scheme) -> str | None:
        target = self.deployment.target
        answer = library_capability(scheme, target.hardware, target.library)
        return None if answer.runs or not self.known_kernels else f"{answer.reason} ({answer.source})"


def _shard_problem(group: FusedGroup, scheme: Scheme, deployment: Deployment) -> str | None:
    """Return why the blocks of scales do not end where the shards do.

    Source: vLLM, quantization/utils/fp8_utils.py, validate_fp8_block_shape: output partitions of whole blocks.
    """
    gpus = deployment.target.gpu_count
    match scheme.weights.granularity:
        case PerBlock(rows, _) if gpus > 1 and group.split == "column":
            for layer in group.layers:
                part = shard_outputs(layer, deployment)
                if part % rows:
                    return f"{scheme} has one scale per {rows} outputs, and a shard of {layer.name} has {part}."
    return None


def refuse_ragged_shards(deployment: Deployment) -> None:
    """Raise InputError where the devices cannot share the model evenly; no scheme can mend that."""
    gpus, model = deployment.target.gpu_count, deployment.model
    for block in model.blocks:
        if block.attention.heads % gpus:
            raise InputError(
                f"{block.attention.heads} attention heads of {model.name} do not divide over {gpus} devices; "
                "plan with --gpus that divides them (vLLM and SGLang refuse the rest)."
            )
        kv_heads = block.attention.kv_heads if isinstance(block.attention, Attention) else gpus
        if kv_heads % gpus and gpus % kv_heads:
            raise InputError(f"{kv_heads} KV heads of {model.name} neither divide {gpus} devices nor repeat on them.")
        for layer in block.layers:
            if layer.group in ("gate_up", "shared_gate_up") and layer.n % gpus:
                raise InputError(f"{layer.name} has {layer.n} outputs, which do not divide over {gpus} devices.")


def wider_scheme(bench: Bench, choice: Choice) -> Scheme:
    """Return the smallest scheme that is legal and stores and multiplies in no fewer bits, 16 bits at last."""
    for scheme in wider_schemes(choice.scheme):
        if bench.problem(choice.group, scheme, method_for(scheme, choice.method)) is None:
            return scheme
    return baseline_scheme(bench.deployment.target.hardware)


def wider_schemes(planned: Scheme) -> list[Scheme]:
    """Return the quantized schemes that store and multiply in no fewer bits, the smallest and most alike first."""
    wide_enough = (
        scheme
        for scheme in SCHEMES.values()
        if scheme.quantized
        and scheme.bits_per_weight > planned.bits_per_weight - SAME_BITS
        and scheme.weights.bits >= planned.weights.bits
        and _activation_bits(scheme) >= _activation_bits(planned)
    )

    def cost(scheme: Scheme) -> tuple[float, bool, float]:
        other_number = scheme.weights.number != planned.weights.number
        return round(scheme.bits_per_weight, 2), other_number, scheme.activations.bits

    return sorted(wide_enough, key=cost)


def _activation_bits(scheme: Scheme) -> float:
    """Return the activation bits that a loss is due to; the 8-bit blocks of ggml cost none that anybody measured."""
    return 16 if scheme.family == "gguf" else scheme.activations.bits


def promoted(bench: Bench, choices: Iterable[Choice]) -> tuple[list[Choice], list[Promotion]]:
    """Return choices that the tool can make, and what had to change for that."""
    found: list[Choice] = []
    changes: list[Promotion] = []
    for choice in choices:
        why = bench.problem(choice.group, choice.scheme, choice.method)
        if why is None:
            found.append(choice)
        else:
            wider, change = changed(choice, wider_scheme(bench, choice), why)
            found.append(wider)
            changes.append(change)
    return _made_alike(bench, found, changes)


def changed(choice: Choice, scheme: Scheme, why: str) -> tuple[Choice, Promotion]:
    """Return the choice with another scheme, and the promotion that this is."""
    method = method_for(scheme, choice.method) if scheme.quantized else ""
    change = Promotion(choice.group.label, choice.scheme.name, scheme.name, why)
    return replace(choice, scheme=scheme, method=method), change


def _made_alike(bench: Bench, choices: list[Choice], changes: list[Promotion]) -> tuple[list[Choice], list[Promotion]]:
    """Give all quantized groups the widest scheme among them where the tool cannot mix them."""
    why = bench.tool.whole_problem(tuple(m for c in choices for m in group_modules(c.group, c.scheme, c.method)))
    if why is None:
        return choices, changes
    widest = max((c for c in choices if c.scheme.quantized), key=lambda c: c.scheme.bits_per_weight)
    alike: list[Choice] = []
    for choice in choices:
        if not choice.scheme.quantized or choice.scheme == widest.scheme:
            alike.append(choice)
            continue
        legal = bench.problem(choice.group, widest.scheme, widest.method) is None
        to = widest.scheme if legal else baseline_scheme(bench.deployment.target.hardware)
        same, change = changed(replace(choice, method=widest.method), to, why)
        alike.append(same)
        changes = [*changes, change]
    return alike, changes


def first_problem(bench: Bench, choices: Iterable[Choice]) -> str | None:
    """Return the first reason why the tool cannot make these choices, with the group it is about, or None."""
    kept = list(choices)
    for choice in kept:
        why = bench.problem(choice.group, choice.scheme, choice.method)
        if why is not None:
            return f"{choice.group.label} in {choice.scheme}: {why}"
    return bench.tool.whole_problem(tuple(m for c in kept for m in group_modules(c.group, c.scheme, c.method)))
