"""A checkpoint's own schemes as an assignment, so that it is predicted as it lies on disk."""

from dataclasses import dataclass, replace

from codesign.checkpoint.stored import GGUF_METHOD, Checkpoint, StoredScheme
from codesign.cost.deployment import Assignment, Deployment, group_problem, kv_format
from codesign.cost.kernels import scheme_math
from codesign.cost.memory import group_bytes
from codesign.errors import CapabilityError, InputError
from codesign.model.groups import SIXTEEN_BIT_GROUPS, FusedGroup, fused_groups
from codesign.model.layers import Layer
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.kv import KV_FORMATS
from codesign.schemes.scheme import Scheme
from codesign.units import format_gib

AS_IS = "as-is"
UNKNOWN_FRACTION = 0.001

# Groups that libraries keep in 16 bits by habit; where a checkpoint has them quantized, its runtime multiplies them so.
_KEPT_AS_STORED = SIXTEEN_BIT_GROUPS | {"head"}


@dataclass(frozen=True, slots=True)
class AsIs:
    """The assignment of a checkpoint, and what a reader of its prediction should know."""

    assignment: Assignment
    warnings: tuple[str, ...]


def as_is_assignment(where: Deployment, checkpoint: Checkpoint, kv_name: str = "") -> AsIs:
    """Return the checkpoint's own schemes and bytes, and its KV format unless another is named.

    Bytes are those of the headers: orders of columns, zero points that a scheme has no use for and the like count;
    tensors of no layer do not. InputError where a layer is stored as nothing that the catalog has, CapabilityError
    where it cannot run.
    """
    groups: list[FusedGroup] = []
    schemes: list[Scheme] = []
    warnings: list[str] = []
    weights_bytes = checkpoint.tensor_bytes - checkpoint.unknown_bytes
    for group in fused_groups(checkpoint.model):
        for part, stored in _parts(group, checkpoint, warnings):
            held = _known(stored, part.label)
            run = _runnable(part, held, where)
            groups.append(part)
            schemes.append(run)
            if run != held:
                weights_bytes += group_bytes(part, run) - group_bytes(part, held)
    embedding = _known(_one(checkpoint, checkpoint.model.embedding.name), "embedding")
    if checkpoint.unknown_bytes > UNKNOWN_FRACTION * checkpoint.tensor_bytes:
        more = " and others" if len(checkpoint.unknown) > 1 else ""
        names = ascii(checkpoint.unknown[0].name[:120])[1:-1] + more
        warnings.append(f"{format_gib(checkpoint.unknown_bytes)} belong to no layer ({names}) and are not counted.")
    kv = kv_name
    if not kv_name and checkpoint.kv in KV_FORMATS:
        kv = checkpoint.kv
    elif not kv_name and checkpoint.kv:
        warnings.append(f"The KV cache of the checkpoint ({checkpoint.kv}) is no format here; 16 bits are predicted.")
    assignment = Assignment(tuple(groups), tuple(schemes), embedding, kv_format(where.target, kv), weights_bytes)
    return AsIs(assignment, tuple(warnings))


def _parts(group: FusedGroup, checkpoint: Checkpoint, warnings: list[str]) -> list[tuple[FusedGroup, StoredScheme]]:
    """Return a group with its scheme; a group of a GGUF file falls apart into one per scheme."""
    if group.experts is not None:
        found = checkpoint.schemes.get(group.experts.name, ())
        if len(found) > 1:
            names = " and ".join(map(str, found))
            warnings.append(f"The experts of block {group.block_index} are in {names}; the widest is predicted.")
        return [(group, max(found, key=_width))] if found else _missing(group.experts.name)
    by_scheme: dict[StoredScheme, list[Layer]] = {}
    for layer in group.layers:
        by_scheme.setdefault(_one(checkpoint, layer.name), []).append(layer)
    if len(by_scheme) > 1 and checkpoint.method != GGUF_METHOD:
        names = ", ".join(f"{layers[0].name} in {stored}" for stored, layers in by_scheme.items())
        raise CapabilityError(
            f"The fused group {group.label} is torn apart: {names}. Runtimes that merge its layers into one "
            "multiplication cannot serve it; quantize them alike."
        )
    # llama.cpp multiplies every matrix by itself, so that its groups may differ inside.
    return [(replace(group, layers=tuple(layers)), stored) for stored, layers in by_scheme.items()]


def _one(checkpoint: Checkpoint, name: str) -> StoredScheme:
    found = checkpoint.schemes.get(name, ())
    return max(found, key=_width) if found else _missing(name)[0][1]


def _missing(name: str) -> list[tuple[FusedGroup, StoredScheme]]:
    raise InputError(f"No tensor of the checkpoint holds {name}; it cannot be predicted as it is.")


def _width(stored: StoredScheme) -> float:
    return stored.scheme.bits_per_weight if stored.scheme else float("inf")


def _known(stored: StoredScheme, label: str) -> Scheme:
    if stored.scheme is None:
        raise InputError(
            f"{label} is stored as {stored}, for which there is no scheme here; `codesign model show` counts its "
            f"bytes, but nothing can be predicted.{stored.reason} Name a scheme with --scheme instead."
        )
    return stored.scheme


def _runnable(group: FusedGroup, scheme: Scheme, where: Deployment) -> Scheme:
    """Return the scheme if it can run there; runtimes convert 16- and 32-bit floats to what they multiply in."""
    if not scheme.quantized:
        try:
            scheme_math(scheme, where.target)
        except CapabilityError:
            return baseline_scheme(where.target.hardware)
        return scheme
    scheme_math(scheme, where.target)
    problem = group_problem(group, scheme, where)
    if problem and group.name not in _KEPT_AS_STORED:
        raise CapabilityError(f"{group.label} is stored in {scheme}, which cannot run so: {problem}")
    return scheme
