"""How well a model predicts a text, and how far it is from a baseline; one block is in memory at a time.

The noise floor is the KL divergence of the baseline from itself with its blocks in bfloat16: the weights, inputs and
outputs of matrices and the hidden states between blocks are rounded to it, on the first windows. The last norm and the
head stay in float32. That is what serving the baseline in 16 bits loses by itself: a KL divergence below it says that a
model cannot be told from its baseline. The rounding is emulated, so that the floor is the same on every machine.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.network import Batch, Network
from codesign.quantize.text import check_ids

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]

_BATCH_TOKENS = 2048
_LOGIT_VALUES = 1 << 23  # 32 MiB of float32 for each model
_FLOOR_WINDOWS = 2
_TAIL_FRACTION = 0.99
_EXPONENT_MAX = 700.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over windows with its standard error, which one window alone does not have.

    Tokens of a window depend on each other, windows hardly do: so the error is that of the windows' means.
    """

    mean: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside its baseline; divergences are KL(baseline || model) per token.

    `loss_increase_nats` is paired window by window, so that its error is far smaller than those of the two losses.
    """

    loss_nats: Estimate
    loss_increase_nats: Estimate
    kl_nats: Estimate
    kl_p99_nats: float
    kl_max_nats: float
    noise_floor_nats: Estimate
    top1_agreement_fraction: Estimate

    @property
    def perplexity(self) -> Estimate:
        """Return the perplexity of the baseline."""
        return perplexity(self.loss_nats)

    @property
    def below_noise_floor(self) -> bool:
        """Return whether the model cannot be told from the baseline in bfloat16."""
        return self.kl_nats.mean <= self.noise_floor_nats.mean


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model makes of windows of a text: all tokens but the first of each window are predicted."""

    window_count: int
    window_tokens: int
    loss_nats: Estimate
    baseline: Comparison | None

    @property
    def predicted_tokens(self) -> int:
        """Return how many tokens were predicted."""
        return self.window_count * (self.window_tokens - 1)

    @property
    def perplexity(self) -> Estimate:
        """Return the perplexity of the model."""
        return perplexity(self.loss_nats)


def perplexity(loss_nats: Estimate) -> Estimate:
    """Return exp of a mean loss, its standard error to the first order."""
    if loss_nats.mean > _EXPONENT_MAX:
        return Estimate(math.inf, None)
    value = math.exp(loss_nats.mean)
    return Estimate(value, None if loss_nats.standard_error is None else value * loss_nats.standard_error)


def _silent(_: str) -> None:
    return None


def evaluate(
    network: Network, windows: "Tensor", baseline: Network | None = None, progress: Progress = _silent
) -> Evaluation:
    """Return perplexity over windows of token ids [count, length], and how far the model is from a baseline.

    Models run one after the other, block by block over all windows; logits are made for a few positions at a time.
    """
    import torch

    count, length = windows.shape
    _check(network, windows, baseline)
    with torch.inference_mode():
        model = _end_of(network, windows, 0, lambda text: progress(f"model, {text}"))
        other = None
        if baseline is not None:
            other = _end_of(baseline, windows, _FLOOR_WINDOWS, lambda text: progress(f"baseline, {text}"))
        progress("head")
        pieces = zip(*_scores(model, other), strict=True)
        loss, *others = (torch.cat(piece).view(count, length - 1) for piece in pieces)
        floor = None if other is None else _floor(other).view(-1, length - 1)
    _refuse_nonfinite(loss, "model")
    comparison = None if floor is None else _comparison(loss, others, floor)
    return Evaluation(count, length, _estimate(loss), comparison)


def _comparison(loss: "Tensor", others: "list[Tensor]", floor: "Tensor") -> Comparison:
    """Return what values [windows, tokens] come to: others are the baseline's losses, divergences and equal choices."""
    true_loss, kl, same = others
    _refuse_nonfinite(true_loss, "baseline")
    ordered = kl.flatten().sort().values
    return Comparison(
        loss_nats=_estimate(true_loss),
        loss_increase_nats=_estimate(loss - true_loss),
        kl_nats=_estimate(kl),
        kl_p99_nats=float(ordered[math.ceil(_TAIL_FRACTION * len(ordered)) - 1]),
        kl_max_nats=float(ordered[-1]),
        noise_floor_nats=_estimate(floor),
        top1_agreement_fraction=_estimate(same),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """A network's batches behind its last block, and the first windows once more with blocks in bfloat16."""

    network: Network
    batches: list[Batch]
    rough: Batch | None


def _end_of(network: Network, windows: "Tensor", rough_count: int, progress: Progress) -> _End:
    length = windows.shape[1]
    batches = [network.start(part) for part in windows.split(max(_BATCH_TOKENS // length, 1))]
    rough = network.start(windows[:rough_count]) if rough_count else None
    for index in range(network.block_count):
        progress(f"block {index + 1} of {network.block_count}")
        with network.block(index) as block:
            for i, batch in enumerate(batches):
                batches[i] = network.step(index, block, batch)
            if rough is not None:
                with _in_bfloat16(block):
                    stepped = network.step(index, block, rough)
                    rough = stepped.with_hidden(_rounded(stepped.hidden))
    return _End(network, batches, rough)


@contextmanager
def _in_bfloat16(block: Any) -> Iterator[None]:
    """Round a block's matrices, and what goes into them and comes out; its weights stay so until it is let go."""
    import torch

    def before(_: Any, arguments: tuple["Tensor", ...]) -> tuple["Tensor", ...]:
        return (_rounded(arguments[0]), *arguments[1:])

    def behind(_: Any, __: Any, out: "Tensor") -> "Tensor":
        return _rounded(out)

    with ExitStack() as stack:
        for module in block.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 2:
                module._parameters["weight"] = torch.nn.Parameter(_rounded(weight), requires_grad=False)
                for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(behind)):
                    stack.callback(hook.remove)
        yield


def _rounded(values: "Tensor") -> "Tensor":
    return values.bfloat16().float()


def _scores(model: _End, other: _End | None) -> Iterator[tuple["Tensor", ...]]:
    """Yield for some positions the losses, and with a baseline its losses, the divergences and equal choices."""
    for i, batch in enumerate(model.batches):
        for first, last in _pieces(batch, model.network):
            logs = _log_probabilities(model.network, batch, first, last)
            targets = batch.ids[:, 1:].flatten()[first:last]
            losses = _losses(logs, targets)
            if other is None:
                yield (losses,)
            else:
                true = _log_probabilities(other.network, other.batches[i], first, last)
                yield losses, _losses(true, targets), *divergence(true, logs)


def _floor(end: _End) -> "Tensor":
    """Return the divergences [tokens] of a network in bfloat16 from itself."""
    import torch

    assert end.rough is not None
    count = len(end.rough.ids)
    exact = torch.cat([batch.hidden for batch in end.batches[:count]])[:count]
    pair = (end.rough.with_hidden(exact), end.rough)
    pieces = [
        divergence(*(_log_probabilities(end.network, batch, first, last) for batch in pair))[0]
        for first, last in _pieces(end.rough, end.network)
    ]
    return torch.cat(pieces)


def _pieces(batch: Batch, network: Network) -> Iterator[tuple[int, int]]:
    """Yield ranges of the positions of a batch that have a next token; the logits of a range are of a fixed size."""
    count = batch.ids.shape[0] * (batch.ids.shape[1] - 1)
    step = max(_LOGIT_VALUES // network.source.model.vocabulary, 1)
    for first in range(0, count, step):
        yield first, min(first + step, count)


def _log_probabilities(network: Network, batch: Batch, first: int, last: int) -> "Tensor":
    """Return the log probabilities [positions, vocabulary] of what follows; norm and head need no other positions."""
    hidden = batch.hidden[:, :-1].flatten(0, 1)[None, first:last]
    ids = batch.ids[:, :-1].flatten()[None, first:last]
    return network.logits(Batch(ids, hidden, batch.calls))[0].float().log_softmax(-1)


def _losses(logs: "Tensor", targets: "Tensor") -> "Tensor":
    return -logs.gather(1, targets.to(logs.device)[:, None])[:, 0].double().cpu()


def divergence(true: "Tensor", found: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return for rows of log probabilities KL(true || found) in nats, and whether the likeliest token is the same."""
    import torch

    same = true.argmax(-1) == found.argmax(-1)
    return torch.linalg.vecdot(true.exp(), true - found).double().cpu(), same.double().cpu()


def _estimate(values: "Tensor") -> Estimate:
    """Return the mean of values [windows, tokens]."""
    means = values.mean(dim=1)
    error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
    return Estimate(float(means.mean()), error)


def _check(network: Network, windows: "Tensor", baseline: Network | None) -> None:
    vocabulary, longest = network.source.model.vocabulary, network.source.model.max_context_tokens
    check_ids(windows.flatten(), vocabulary, "The text")
    if not 2 <= windows.shape[1] <= longest:
        raise InputError(
            f"Windows of {windows.shape[1]:,} tokens cannot be evaluated: {network.source.model.name} takes 2 to "
            f"{longest:,} tokens."
        )
    if baseline is not None and baseline.source.model.vocabulary != vocabulary:
        raise InputError(
            f"The baseline has a vocabulary of {baseline.source.model.vocabulary:,} tokens and the model one of "
            f"{vocabulary:,}: their predictions cannot be compared. Give the model that was quantized."
        )


def _refuse_nonfinite(loss: "Tensor", which: str) -> None:
    bad = (~loss.isfinite()).sum(dim=1).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(
            f"The {which} gives NaN or infinite losses in {len(bad)} of {len(loss)} windows, the first is {bad[0]}. "
            "Its weights are damaged, or its scales too small; `codesign errors` names layers with NaN and Inf."
        )
