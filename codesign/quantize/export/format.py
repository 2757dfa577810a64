"""What a format of safetensors files has to say: what it cannot hold, the tensors of a layer, and its config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.quantize.export.contents import Contents
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.schemes.scheme import PerGroup

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def _no_problem(contents: Contents) -> str | None:
    return None


def _nothing(contents: Contents) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Format:
    """How layers lie in safetensors files; `pack` names tensors by what follows the name of the layer and a dot.

    `problem` and `whole_problem` return why a layer or all of them together cannot be stored, with what can.
    `merges` says whether programs that read it multiply q, k and v as one, so that they must share a scheme.
    """

    name: str
    problem: Callable[[LayerHead], str | None]
    pack: Callable[[QuantizedLayer, Contents], Tensors]
    config: Callable[[Contents], dict[str, Any]]
    merges: bool = True
    whole_problem: Callable[[Contents], str | None] = _no_problem
    files: Callable[[Contents], Mapping[str, Any]] = _nothing
    metadata: Callable[[Contents], Mapping[str, str]] = _nothing


def ragged_problem(head: LayerHead) -> str | None:
    """Return why rows do not hold whole groups."""
    granularity, k = head.scheme.weights.granularity, head.shape[1]
    if not isinstance(granularity, PerGroup) or k % granularity.size == 0:
        return None
    fitting = k & -k
    advice = f"Use groups of {min(fitting, 128)} or" if fitting >= 16 else "Use"
    return f"groups of {granularity.size} do not divide its {k} inputs. {advice} scales per channel."


def by_scheme(contents: Contents) -> dict[str, list[LayerHead]]:
    """Return the quantized layers by the name of their scheme, the commonest scheme first."""
    found: dict[str, list[LayerHead]] = {}
    for head in contents.quantized.values():
        found.setdefault(head.scheme.name, []).append(head)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
