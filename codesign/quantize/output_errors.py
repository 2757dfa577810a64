"""What rounding does to the outputs of layers on a text, measured while the exact model runs block by block."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.model.layers import Layer
from codesign.quantize.activations import quantize_activations
from codesign.quantize.errors import ErrorSum
from codesign.quantize.layer_errors import (
    InputErrors,
    LayerErrors,
    Progress,
    nonfinite_names,
    rounded_weight,
    silent,
    weight_of,
)
from codesign.quantize.network import Batch, Network
from codesign.quantize.statistics import StatisticsSum
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_TOKENS = 2048
_LOGIT_VALUES = 1 << 22


def with_outputs(
    found: Sequence[LayerErrors], network: Network, windows: "Tensor", scheme: Scheme, progress: Progress = silent
) -> tuple[LayerErrors, ...]:
    """Return the errors with those of outputs over windows of token ids [count, length], where weights were rounded.

    The range of static activations is that of each batch: a calibration that knows the text.
    """
    import torch

    bad = nonfinite_names(found)
    if bad:
        raise InputError(f"{bad[0]} has NaN or infinite weights, which spread to all outputs behind it.")
    probed = _Probed(network, scheme, tuple(one.layer for one in found if one.weight is not None))
    with torch.inference_mode():
        errors = _input_errors(probed, windows, progress)
    return tuple(replace(one, inputs=errors.get(one.layer.name)) for one in found)


@dataclass(frozen=True, slots=True, eq=False)
class _Probed:
    """A network with the layers to look at, and the scheme that they are rounded to."""

    network: Network
    scheme: Scheme
    layers: tuple[Layer, ...]

    @contextmanager
    def of_block(self, index: int | None, errors: dict[str, InputErrors]) -> Iterator[None]:
        """Look at a block's layers, or at those outside of blocks, and enter their errors at the end."""
        probes = {
            layer.name: _Probe(weight_of(self.network.source, layer), self.scheme)
            for layer in self.layers
            if layer.block_index == index
        }
        with ExitStack() as stack:
            for name, probe in probes.items():
                hook = self.network.transformer.get_submodule(name).register_forward_hook(probe.see)
                stack.callback(hook.remove)
            yield
        errors.update({name: probe.result() for name, probe in probes.items() if probe.used})


class _Probe:
    """Sees what goes into a layer and what comes out, and works out what would with rounded weights and inputs."""

    def __init__(self, w: "Tensor", scheme: Scheme) -> None:
        self._rounded, self._format = rounded_weight(w, scheme), scheme.activations
        self._output, self._activations = ErrorSum(), ErrorSum()
        self._statistics = StatisticsSum(w.shape[1], with_hessian=False)
        self.used = False

    def see(self, module: Any, arguments: tuple["Tensor", ...], out: "Tensor") -> None:
        """Take a batch into account."""
        import torch

        x = arguments[0].flatten(0, -2).float()
        self.used = True
        self._statistics.add(x.cpu())
        stored = quantize_activations(x, self._format)
        if self._format.granularity is not None:
            self._activations.add(x, stored)
        found = torch.nn.functional.linear(stored, self._rounded.to(x.device), module.bias)
        self._output.add(out.flatten(0, -2), found)

    def result(self) -> InputErrors:
        """Return the errors over all batches."""
        seen = self._statistics.result()
        median = float(seen.largest.median())
        return InputErrors(
            token_count=seen.token_count,
            output=self._output.result(),
            activations=None if self._format.granularity is None else self._activations.result(),
            outlier_channels=seen.outlier_channels,
            largest_over_median=float(seen.largest.max()) / median if median > 0 else None,
            dead_channels=seen.dead_channels,
        )


def _input_errors(probed: _Probed, windows: "Tensor", progress: Progress) -> Mapping[str, InputErrors]:
    """Return the errors by layer, those of the blocks first."""
    network = probed.network
    batches = [network.start(part) for part in windows.split(max(_BATCH_TOKENS // windows.shape[1], 1))]
    errors: dict[str, InputErrors] = {}
    for index in range(network.block_count):
        progress(f"outputs of block {index + 1} of {network.block_count}")
        with network.block(index) as block, probed.of_block(index, errors):
            for i, batch in enumerate(batches):
                batches[i] = network.step(index, block, batch)
    progress("outputs of the head")
    with probed.of_block(None, errors):
        for batch in batches:
            for piece in _pieces(batch, network.source.model.vocabulary):
                network.logits(piece)
    return errors


def _pieces(batch: Batch, vocabulary: int) -> Iterator[Batch]:
    """Yield a batch as short ones, whose logits are small; norm and head need no other positions."""
    step = max(_LOGIT_VALUES // vocabulary, 1)
    ids, hidden = batch.ids.flatten()[None], batch.hidden.flatten(0, 1)[None]
    for first in range(0, ids.shape[1], step):
        yield Batch(ids[:, first : first + step], hidden[:, first : first + step], batch.calls)
