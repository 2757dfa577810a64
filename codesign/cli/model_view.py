"""Models as terminal tables."""

from collections.abc import Sequence
from typing import Any

from codesign.cli.output import print_line, print_table, print_title
from codesign.codec import to_plain
from codesign.model.groups import FusedGroup, fused_groups
from codesign.model.layers import Attention, LatentAttention, Model
from codesign.table import Table
from codesign.units import format_gib, significant

FP16_BYTES = 2


def model_summary(model: Model) -> dict[str, Any]:
    """Return the figures of one row as plain JSON values."""
    return {
        "name": model.name,
        "architecture": model.architecture,
        "parameter_count": model.parameter_count,
        "active_parameter_count": model.active_parameter_count,
        "block_count": len(model.blocks),
        "hidden": model.hidden,
        "vocabulary": model.vocabulary,
        "max_context_tokens": model.max_context_tokens,
        "kv_bytes_per_token_fp16": model.kv_elements_per_token * FP16_BYTES,
        "digest": model.digest,
    }


def model_record(model: Model) -> dict[str, Any]:
    """Return a model as plain JSON values, layer by layer."""
    layers = [to_plain(layer) for layer in model.layers]
    experts = [to_plain(block.experts) for block in model.blocks if block.experts]
    return {**model_summary(model), "source": model.source, "layers": layers, "experts": experts}


def print_model_list(models: Sequence[Model]) -> None:
    """Print one row per model."""
    rows = []
    for model in models:
        active = model.active_parameter_count
        rows.append(
            (
                model.name,
                f"{significant(model.parameter_count / 1e9)} B",
                f"{significant(active / 1e9)} B" if active != model.parameter_count else "",
                f"{len(model.blocks)}",
                f"{model.max_context_tokens:,}",
                format_gib(model.kv_elements_per_token * FP16_BYTES),
                model.architecture,
            )
        )
    headers = ("name", "parameters", "active", "blocks", "context", "KV per token (fp16)", "architecture")
    print_table(Table(headers, rows, right=(1, 2, 3, 4, 5)))


def print_model(model: Model) -> None:
    """Print the fused groups of a model, equal blocks merged."""
    print_title(f"{model.name} ({model.architecture})")
    print_line(
        f"{model.parameter_count:,} parameters ({model.active_parameter_count:,} per token), "
        f"{len(model.blocks)} blocks, hidden {model.hidden:,}, vocabulary {model.vocabulary:,}, "
        f"context {model.max_context_tokens:,}, "
        f"embedding {'tied to' if model.tied_embedding else 'apart from'} the head"
    )
    print_line(
        f"KV cache: {model.kv_elements_per_token * FP16_BYTES:,} bytes per token in 16 bits. Source: {model.source}"
    )
    attention: dict[Attention | LatentAttention, list[int]] = {}
    for block in model.blocks:
        attention.setdefault(block.attention, []).append(block.index)
    for shape, blocks in attention.items():
        print_line(
            f"attention of {len(blocks)} block{'s' if len(blocks) > 1 else ''} from {blocks[0]}: {_describe(shape)}"
        )
    merged: dict[tuple[object, ...], list[FusedGroup]] = {}
    for group in fused_groups(model):
        merged.setdefault(group.signature, []).append(group)
    rows = [
        (g[0].name, f"{len(g)}", _shape(g[0]), f"{sum(x.weight_count for x in g):,}", _members(g[0]))
        for g in merged.values()
    ]
    print_table(Table(("group", "times", "n x k", "weights", "members"), rows, right=(1, 2, 3)))


def _describe(shape: Attention | LatentAttention) -> str:
    window = "" if shape.window_tokens is None else f", window {shape.window_tokens:,}"
    if isinstance(shape, LatentAttention):
        return f"latent, {shape.heads} heads, rank {shape.kv_rank} + {shape.rope_dim} rotary per token{window}"
    return f"{shape.heads} heads, {shape.kv_heads} KV heads of {shape.head_dim}{window}"


def _shape(group: FusedGroup) -> str:
    if group.experts is not None:
        return f"{group.experts.expert_count} x {group.experts.intermediate} x {group.experts.hidden}"
    return f"{group.n} x {group.k}"


def _members(group: FusedGroup) -> str:
    if group.experts is not None:
        return f"{group.experts.expert_count} experts, {group.experts.top_k} per token"
    return ", ".join(layer.name for layer in group.layers)
