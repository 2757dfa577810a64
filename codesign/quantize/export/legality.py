"""Whether a format can hold a result: asked before anything is written."""

from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format
from codesign.quantize.result import LayerHead

_NAMED = 3


def check_legal(contents: Contents, format_: Format) -> None:
    """Refuse a result that the format cannot hold, naming the layers, the reason and what can be done."""
    if not contents.quantized:
        raise InputError(
            f"{contents.results.path}: no layer is quantized, so that {format_.name} has nothing to store; "
            "quantize with a scheme of fewer than 16 bits."
        )
    problems: dict[str, list[str]] = {}
    for head in contents.quantized.values():
        why = rotation_problem(head) or _embedding_problem(contents, head) or format_.problem(head)
        if why:
            problems.setdefault(why, []).append(head.name)
    for why, names in problems.items():
        raise InputError(f"{format_.name} cannot hold {named(names)}: {why}")
    torn = torn_groups(contents) if format_.merges else ()
    if torn:
        raise InputError(f"{format_.name} cannot hold this: {torn[0]}")
    whole = format_.whole_problem(contents)
    if whole:
        raise InputError(whole)


def named(names: list[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def rotation_problem(head: LayerHead) -> str | None:
    """Return why a layer with rotated inputs is not exported."""
    if not head.rotated:
        return None
    return (
        "its inputs are rotated before they are multiplied, which no format stores. Quantize without rotation; "
        "rotated results are evaluated from where they are kept."
    )


def _embedding_problem(contents: Contents, head: LayerHead) -> str | None:
    if head.name != contents.source.model.embedding.name:
        return None
    return "embeddings stay in 16 bits in this format. Leave the embedding out of the plan, or use gguf."


def torn_groups(contents: Contents) -> tuple[str, ...]:
    """Return what is wrong with groups that programs multiply as one: their members have several schemes."""
    quantized = contents.quantized
    found = []
    for group in fused_groups(contents.source.model):
        schemes: dict[str, str] = {}
        for layer in group.layers:
            schemes.setdefault(str(quantized[layer.name].scheme) if layer.name in quantized else "16 bits", layer.name)
        if len(schemes) > 1:
            parts = " and ".join(f"{name} in {scheme}" for scheme, name in schemes.items())
            found.append(f"{group.label} is multiplied as one by vLLM, and has {parts}. Give its layers one scheme.")
    return tuple(found)


def scale_warnings(contents: Contents) -> tuple[str, ...]:
    """Return a warning for groups whose members have different scales of the whole tensor (NVFP4)."""
    quantized = contents.quantized
    differing = [
        group.label
        for group in fused_groups(contents.source.model)
        if len({quantized[layer.name].divisor for layer in group.layers if layer.name in quantized}) > 1
    ]
    if not differing:
        return ()
    return (
        f"{named(differing)}: layers that vLLM merges have different global scales, of which it takes one; "
        "quantize them together to keep the accuracy.",
    )
