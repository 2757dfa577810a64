"""Text as token ids: from a file that the user gives, or written by the model itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.files import read_text

if TYPE_CHECKING:
    from torch import Tensor

TEXT_BYTES_MAX = 2**30
_GREEDY_TOKENS = 4  # LLM-QAT (Liu et al., arXiv 2305.17888, section 3.1): the first few greedily, the rest sampled


def read_tokens(path: Path, tokenizer: Any, vocabulary: int, limit: int | None = None) -> "Tensor":
    """Return the ids [tokens] of a text file as it is, no special tokens added; at most the first `limit`."""
    import torch

    text = read_text(path, TEXT_BYTES_MAX, "text")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    check_ids(ids, vocabulary, str(path))
    return ids if limit is None else ids[:limit]


def check_same_tokens(ids: "Tensor", others: "Tensor", where: str) -> None:
    """Refuse two models whose tokenizers make different tokens of a text."""
    import torch

    if torch.equal(ids, others):
        return
    shared = min(len(ids), len(others))
    differing = (ids[:shared] != others[:shared]).nonzero()
    first = int(differing[0]) if len(differing) else shared
    raise InputError(
        f"{where}: the tokenizers of the model and of the baseline differ from token {first:,} of this text on: what "
        "they predict cannot be compared. Give the model that was quantized as the baseline."
    )


def check_ids(ids: "Tensor", vocabulary: int, where: str) -> None:
    """Refuse token ids that the model has no embedding for."""
    if len(ids) == 0:
        raise InputError(f"{where}: this text has no tokens; give a text file with words in it.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        raise InputError(
            f"{where}: token id {bad} is outside of the model's vocabulary of {vocabulary}: "
            "the tokenizer belongs to another model."
        )


def windows(ids: "Tensor", length: int, count: int | None = None, where: str = "The text") -> "Tensor":
    """Return the ids as consecutive windows [count, length]; a rest shorter than a window is left out."""
    there = len(ids) // length
    wanted = there if count is None else count
    if there < max(wanted, 1):
        raise InputError(
            f"{where} has {len(ids):,} tokens: too short for {max(wanted, 1)} windows of {length}. "
            "Give a longer text, or fewer or shorter windows."
        )
    return ids[: wanted * length].reshape(wanted, length)


def sampled_windows(transformer: Any, vocabulary: int, length: int, count: int, seed: int) -> "Tensor":
    """Return text [count, length] that a model writes: a random first token, a few greedy ones, the rest sampled."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (count, 1), generator=generator)
    parts, cache = [ids], None
    with torch.inference_mode():
        for position in range(1, length):
            out = transformer(input_ids=ids.to(transformer.device), past_key_values=cache, use_cache=True)
            cache, scores = out.past_key_values, out.logits[:, -1].float().cpu()
            greedy = position <= _GREEDY_TOKENS
            ids = scores.argmax(-1, keepdim=True) if greedy else _sampled(scores, generator)
            parts.append(ids)
    return torch.cat(parts, dim=1)


def _sampled(scores: "Tensor", generator: Any) -> "Tensor":
    import torch

    return torch.multinomial(scores.softmax(-1), 1, generator=generator)
