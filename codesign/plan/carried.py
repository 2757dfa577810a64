"""Which layer gets which scheme when a plan, or one scheme, is carried out; what cannot be stored is promoted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codesign.errors import InputError
from codesign.model.groups import FusedGroup, fused_groups
from codesign.model.layers import Model
from codesign.plan.file import Plan
from codesign.plan.recipes.legality import Choice, Promotion, changed, wider_schemes
from codesign.plan.recipes.make import planned_choices, promotion_remarks
from codesign.quality.methods import group_size_of
from codesign.schemes.capability import storage_problem
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

Problem = Callable[[FusedGroup, Scheme], str | None]


@dataclass(frozen=True, slots=True)
class Carried:
    """The scheme of every layer that is to be quantized, and what was promoted, in sentences."""

    schemes: dict[str, Scheme]
    remarks: tuple[str, ...]


def planned_schemes(plan: Plan, model: Model, problem: Problem, *, promote: bool) -> Carried:
    """Return the schemes of a plan; one that was made for another model is refused."""
    if plan.model_digest != model.digest:
        raise InputError(
            f"The plan was made for {plan.model[:80]}, whose shapes are not those of {model.name}; "
            "plan again with this --model."
        )
    choices, changes = planned_choices(plan, fused_groups(model), promote=promote)
    return _carried(choices, changes, problem, promote=promote)


def uniform_schemes(scheme: Scheme, model: Model, problem: Problem, *, promote: bool) -> Carried:
    """Return one scheme for all layers of all blocks; head and embedding stay in 16 bits."""
    choices = [Choice(group, scheme, "") for group in fused_groups(model) if group.block_index is not None]
    return _carried(choices, [], problem, promote=promote)


def _carried(choices: Sequence[Choice], changes: list[Promotion], problem: Problem, *, promote: bool) -> Carried:
    """Check every choice; raise for the first that is not possible, or promote all such."""
    schemes: dict[str, Scheme] = {}
    for choice in choices:
        why = _problem(choice.group, choice.scheme, problem)
        chosen = choice
        if why is not None:
            wider = next((s for s in _alike(choice.scheme) if _problem(choice.group, s, problem) is None), _SIXTEEN)
            if not promote:
                raise InputError(
                    f"{choice.group.label} in {choice.scheme}: {why} The nearest that works there is {wider}; "
                    "--promote takes it."
                )
            chosen, change = changed(choice, wider, why)
            changes.append(change)
        if chosen.scheme.quantized:
            schemes.update({layer.name: chosen.scheme for layer in choice.group.layers})
    if not schemes:
        raise InputError("This keeps all layers in 16 bits, so that there is nothing to quantize.")
    return Carried(schemes, tuple(promotion_remarks(changes)))


_SIXTEEN = parse_scheme("BF16")


def _problem(group: FusedGroup, scheme: Scheme, problem: Problem) -> str | None:
    if not scheme.quantized:
        return None
    return storage_problem(scheme, group.k) or problem(group, scheme)


def _alike(planned: Scheme) -> list[Scheme]:
    """Return wider schemes of the same make, so that method and format still fit; smaller groups come first."""
    return _smaller_groups(planned) + [
        scheme
        for scheme in wider_schemes(planned)
        if (scheme.family == "gguf") == (planned.family == "gguf")
        and scheme.weights.symmetric == planned.weights.symmetric
        and scheme.weights.flattened == planned.weights.flattened
        and (scheme.activations.granularity is None) == (planned.activations.granularity is None)
        and (planned.family == "gguf" or scheme.weights.number[:3] == planned.weights.number[:3])
    ]


def _smaller_groups(planned: Scheme) -> list[Scheme]:
    size = group_size_of(planned) if planned.activations.number != "e4m3" else None
    smaller = [other for other in (128, 64, 32, 16) if size is not None and other < size]
    return [parse_scheme(planned.name.replace(f"-g{size}", f"-g{other}")) for other in smaller]
