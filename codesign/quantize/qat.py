"""Quantization-aware training: a whole transformer is fine-tuned while its linear layers round.

Trained are the weights of the layers that are quantized, all norms and biases, and with LSQ the scales. The order of
windows follows from seed and step and nothing else is random, so that a state needs no generator.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from codesign.errors import InputError
from codesign.model.layers import Model
from codesign.quantize.fake_linear import refusal
from codesign.quantize.network import Network
from codesign.quantize.result import OUTSIDE, ResultFolder
from codesign.quantize.source import WeightSource
from codesign.quantize.student import Start, Student, student_of
from codesign.quantize.training_state import restore_state, save_state, state_bytes
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_WARM_UP_FRACTION = 0.1
_WEIGHT_DECAY = 0.01
_STATE = "training.safetensors"
_FLOAT_BYTES = 4
_PROGRAM_BYTES = 2**28  # Python with torch and transformers, before any weights


@dataclass(frozen=True, slots=True)
class QatOptions:
    """How to train. `step_learning_rate` is that of scales, relative to the mean scale of their layer.

    `loss` is the KL divergence from the 16-bit model's predictions, or that of the next token of the text.
    """

    steps: int
    method: Literal["lsq", "ste"] = "lsq"
    loss: Literal["kl", "next-token"] = "kl"
    learning_rate: float = 1e-5
    step_learning_rate: float = 1e-3
    batch: int = 1
    seed: int = 0
    save_every: int = 50


@dataclass(frozen=True, slots=True, eq=False)
class QatTask:
    """What to train: weights, a scheme for each layer by name, windows [count, t] of token ids, where scales begin."""

    source: WeightSource
    schemes: Mapping[str, Scheme]
    windows: "Tensor"
    start: Start = "rtn"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step that was made, counted from 1, and the loss before it."""

    step: int
    loss_nats: float


def train(task: QatTask, options: QatOptions, results: ResultFolder) -> Iterator[StepReport]:
    """Train, keep what came out in `results`, and yield a report of each step.

    What an earlier run left there is gone on with, to bit by bit the same end.
    """
    check_task(task, options)
    if is_whole(results, task.source.model):
        return
    state = results.path / _STATE
    with ExitStack() as stack:
        student = stack.enter_context(student_of(task.source, task.schemes, task.start, options.method, task.device))
        teacher = None
        if options.loss == "kl":
            teacher = stack.enter_context(Network(task.source, task.device).whole())
        student.begin(task.windows[: options.batch].to(task.device))
        optimizer = _optimizer(student, options)
        run = _Run(student, teacher, optimizer, task.windows.to(task.device))
        for step in range(restore_state(state, student.trained, optimizer), options.steps):
            report = _step(run, options, step)
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                save_state(state, step + 1, student.trained, optimizer)
            yield report
        for part in student.parts():
            results.write(part)
    state.unlink(missing_ok=True)


def is_whole(results: ResultFolder, model: Model) -> bool:
    """Return whether results have every part of a model."""
    return all(results.has(index) for index in (OUTSIDE, *range(len(model.blocks))))


def check_task(task: QatTask, options: QatOptions) -> None:
    """Refuse, before any work, what cannot be trained."""
    if not task.schemes:
        raise InputError("No layer is to be quantized, so that there is nothing to train; give another plan or scheme.")
    model = task.source.model
    names = {layer.name for layer in model.layers}
    for name, scheme in task.schemes.items():
        if name not in names:
            raise InputError(f"{model.name} has no layer {name}: the plan is of another model; plan again.")
        if task.source.inputs(name) is not None:
            raise InputError(f"{name} has quantized inputs already; train from the model before it was quantized.")
        why = refusal(scheme, options.method == "lsq")
        if why:
            raise InputError(f"{name}: {why}")
    count, length = task.windows.shape
    if length > model.max_context_tokens:
        raise InputError(
            f"Windows of {length} tokens are longer than the {model.max_context_tokens} that {model.name} was made "
            "for; give shorter ones."
        )
    if options.batch > count:
        raise InputError(
            f"A batch of {options.batch} needs as many windows, the text has {count}. "
            "Give a longer text, shorter windows or a smaller batch."
        )


def qat_settings(task: QatTask, options: QatOptions) -> dict[str, Any]:
    """Return what the end of a training depends on, for the settings of its results."""
    start = str(task.start.path) if isinstance(task.start, ResultFolder) else task.start
    return {
        "method": f"qat {options.method}",
        "model": task.source.model.digest,
        "schemes": {name: scheme.name for name, scheme in task.schemes.items()},
        "windows": [list(task.windows.shape), sha256(task.windows.numpy().tobytes()).hexdigest()],
        "start": start,
        "options": {name: value for name, value in asdict(options).items() if name != "save_every"},
    }


@dataclass(frozen=True, slots=True)
class QatNeed:
    """Bytes that a training takes in memory and that its state takes on the disk."""

    memory_bytes: float
    state_bytes: float


def qat_need(model: Model, schemes: Mapping[str, Scheme], tokens: int, distilled: bool) -> QatNeed:
    """Return what training with so many tokens a step takes.

    Weights once for the student and once for the teacher; for those that are trained a gradient, two moments and the
    rounded copy that the backward pass needs; what each layer keeps of its inputs and outputs; logits with their
    logarithms and gradients.
    """
    trained = sum(layer.weight_count for layer in model.layers if layer.name in schemes)
    weights = model.parameter_count * (2 if distilled else 1) + trained * 4
    kept = sum(layer.n + 2 * layer.k for block in model.blocks for layer in block.layers)
    logits = model.vocabulary * (6 if distilled else 4)
    return QatNeed(_PROGRAM_BYTES + float(_FLOAT_BYTES * (weights + tokens * (kept + logits))), state_bytes(trained))


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    student: Student
    teacher: Any
    optimizer: Any
    windows: "Tensor"


def _optimizer(student: Student, options: QatOptions) -> Any:
    """Return AdamW with a group for every kind of parameter; scales have a rate in proportion to their size."""
    import torch

    groups = [
        {"params": student.matrices, "base_lr": options.learning_rate, "weight_decay": _WEIGHT_DECAY},
        {"params": student.vectors, "base_lr": options.learning_rate, "weight_decay": 0.0},
    ]
    # Adam divides by the size of gradients, so that their scale alone does not set the pace of the steps.
    for scale in student.scales:
        rate = options.step_learning_rate * float(scale.detach().mean())
        groups.append({"params": [scale], "base_lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def _step(run: _Run, options: QatOptions, step: int) -> StepReport:
    """Make one step and return its report."""
    import torch

    chosen = batch_indices(len(run.windows), options.batch, step, options.seed)
    ids = run.windows[torch.tensor(chosen, device=run.windows.device)]
    target = None
    if run.teacher is not None:
        with torch.no_grad():
            target = run.teacher(input_ids=ids, use_cache=False).logits
    loss = loss_nats(run.student.logits(ids), target, ids)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(f"The loss is {value} at step {step + 1}: the training diverges. Give a smaller --lr.")
    loss.backward()
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate_fraction(step, options.steps)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)  # the next forward pass has no use for them
    run.student.keep_positive()
    return StepReport(step + 1, value)


def loss_nats(logits: "Tensor", target: "Tensor | None", ids: "Tensor") -> "Tensor":
    """Return the mean per token of KL(target || logits), or without a target the loss of the next token."""
    import torch

    if target is None:
        following = ids[:, 1:].reshape(-1)
        loss: Tensor = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), following)
        return loss
    vocabulary = logits.shape[-1]
    found, wanted = (some.reshape(-1, vocabulary).log_softmax(-1) for some in (logits, target))
    divergence: Tensor = torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return divergence


def rate_fraction(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: it rises over the first tenth, then falls as a cosine to 0."""
    warm_up = max(round(steps * _WARM_UP_FRACTION), 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def batch_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Return the windows of a step: all of them once in an order of their own, then all in another."""
    return [_order(count, seed, place // count)[place % count] for place in range(step * batch, (step + 1) * batch)]


def _order(count: int, seed: int, epoch: int) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
