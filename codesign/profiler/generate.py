"""A real model that generates: prefill, further tokens, memory, with linear layers carried out by chosen kernels.

The model runs in transformers, eagerly; a plan says which kernels replace which of its linear layers.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codesign.errors import CapabilityError, InputError
from codesign.model.groups import FusedGroup, fused_groups
from codesign.model.layers import Layer, Model
from codesign.model.weight_files import GGUF_SUFFIX
from codesign.plan.file import Plan
from codesign.profiler.check import PLAIN_FACTOR, Check, deviation
from codesign.profiler.kernel import GemmCase
from codesign.profiler.linear import FIXED_ROWS, Linear, LinearKernel, linear_kernels
from codesign.profiler.timing import Work
from codesign.profiler.weights import Float32
from codesign.quantize.network import Network
from codesign.quantize.source import open_source, transformers
from codesign.schemes.catalog import parse_scheme

CHECKED_POSITIONS = 16  # logits at the last tokens of the prompt
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: begin the peak of the resident set anew


@dataclass(frozen=True, slots=True)
class Replacement:
    """One linear layer of the model and the kernel that takes its place."""

    layer: Layer
    kernel: LinearKernel
    case: GemmCase


@dataclass(frozen=True, slots=True)
class LogitsCheck:
    """How far the logits are from those of the unreplaced model in float32, and how far plain torch's are."""

    check: Check
    max_difference: float
    same_next_token: bool


class Decoder:
    """A model in the middle of greedy generation; a new one begins by itself when the last is at its end."""

    def __init__(self, model: Any, prompt: Any, new_tokens: int) -> None:
        self._model, self._prompt, self._new_tokens = model, prompt, new_tokens
        self._left, self._token, self._cache = 0, None, None

    def prefill(self, _copy: int = 0) -> Any:
        """Return the logits behind the prompt, whose keys and values are kept."""
        out = self._model(input_ids=self._prompt, use_cache=True, logits_to_keep=1)
        self._token, self._cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        self._left = self._new_tokens - 1
        return out.logits

    def begin(self) -> None:
        """Make sure that a token can be added."""
        if self._left < 1:
            self.prefill()

    def step(self, _copy: int = 0) -> Any:
        """Add one token."""
        out = self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        self._token = out.logits[:, -1:].argmax(-1)
        self._left -= 1
        return self._token

    @property
    def prefill_work(self) -> Work:
        """Return what is timed as the first token."""
        return Work(self.prefill)

    @property
    def decode_work(self) -> Work:
        """Return what is timed as a further token."""
        return Work(self.step, before_sample=self.begin)


def layer_schemes(model: Model, plan: Plan | None) -> dict[str, str]:
    """Return the scheme of every linear layer that the plan quantizes, by the layer's name."""
    if plan is None:
        return {}
    groups = {group.key: group for group in fused_groups(model)}
    found: dict[str, str] = {}
    for one in plan.groups:
        group = groups.get((one.block_index, one.name))
        if group is None:
            raise InputError(f"the plan is of {plan.model}: {model.name} has no {one.name} in block {one.block_index}.")
        if parse_scheme(one.scheme).quantized:
            found.update({layer.name: one.scheme for layer in _dense(group)})
    return found


def _dense(group: FusedGroup) -> tuple[Layer, ...]:
    if group.experts is not None:
        raise InputError(f"{group.label}: routed experts cannot be replaced by kernels yet; plan them in 16 bits.")
    return group.layers


def replacements(model: Model, plan: Plan | None, libraries: tuple[str, ...], threads: int) -> tuple[Replacement, ...]:
    """Return the kernel of every layer that the plan quantizes: the first of these libraries that can run it."""
    layers = {layer.name: layer for layer in model.layers}
    known = [one for one in linear_kernels() if one.library.name in libraries]
    return tuple(
        _replacement(layers[name], scheme, known, threads) for name, scheme in layer_schemes(model, plan).items()
    )


def _replacement(layer: Layer, scheme: str, known: list[LinearKernel], threads: int) -> Replacement:
    case = GemmCase(scheme, 1, layer.n, layer.k, threads)
    reasons = []
    for one in known:
        if parse_scheme(one.row.scheme).name != scheme:
            continue
        fixed = "it fixes the number of rows" if one.library.name in FIXED_ROWS else None
        reason = fixed or one.refuses(case)
        if reason is None:
            return Replacement(layer, one, case)
        reasons.append(f"{one.library.name}/{one.row.name}: {reason}")
    told = "; ".join(reasons) or "no library that was named has one"
    raise CapabilityError(f"{layer.name}: no kernel here runs {scheme} with n = {layer.n}, k = {layer.k}: {told}.")


def load_transformer(path: Path) -> Any:
    """Return the model in a folder or GGUF file in float32, from this disk alone."""
    import torch

    if path.suffix.lower() == GGUF_SUFFIX:
        return Network(open_source(str(path))).loaded()
    try:
        model: Any = transformers().AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{path}: transformers cannot load this model: {line}") from error
    return model.eval()


def seeded_prompt(vocabulary: int, tokens: int, seed: int) -> Any:
    """Return one prompt of random tokens."""
    import torch

    return torch.from_numpy(np.random.default_rng((seed, tokens)).integers(0, vocabulary, (1, tokens)))


def replace_layers(transformer: Any, chosen: tuple[Replacement, ...], prompt: Any) -> LogitsCheck:
    """Put the kernels in the place of the model's layers, the rest into bf16, and return what that does to logits.

    Allowed is twice the error of the same model with the dequantized weights in plain torch.
    """
    import torch

    exact = _logits(transformer, prompt)
    transformer.to(torch.bfloat16)
    for one, plain in _plain_layers(transformer, chosen):
        transformer.get_submodule(one.layer.name).forward = plain
    plain_logits = _logits(transformer, prompt)
    for one in chosen:
        module = transformer.get_submodule(one.layer.name)
        weights = one.kernel.quantized(_weight(module))
        module.forward = _forward(one.kernel.layer(weights, one.case), module.bias)
        module.weight = None
    gc.collect()
    return _compare(_logits(transformer, prompt), plain_logits, exact)


def _plain_layers(transformer: Any, chosen: tuple[Replacement, ...]) -> Iterator[tuple[Replacement, Linear]]:
    import torch

    for one in chosen:
        module = transformer.get_submodule(one.layer.name)
        weights = one.kernel.quantized(_weight(module))
        yield one, _forward(one.kernel.plain(weights, torch.bfloat16), module.bias)


def _weight(module: Any) -> Float32:
    values: Float32 = module.weight.detach().float().numpy()
    return values


def _forward(linear: Linear, bias: Any) -> Linear:
    """Return a layer of tensors with any number of dimensions, its bias added."""

    def forward(x: Any) -> Any:
        out = linear(x.reshape(-1, x.shape[-1]))
        out = out if bias is None else out + bias
        return out.reshape(*x.shape[:-1], out.shape[-1])

    return forward


def _logits(transformer: Any, prompt: Any) -> Float32:
    import torch

    with torch.no_grad():
        out = transformer(input_ids=prompt, use_cache=False, logits_to_keep=CHECKED_POSITIONS)
    values: Float32 = out.logits[0].float().numpy()
    return values


def _compare(logits: Float32, plain: Float32, exact: Float32) -> LogitsCheck:
    wide = exact.astype(np.float64)
    allowed = PLAIN_FACTOR * deviation(plain, wide).fraction
    same = bool(logits[-1].argmax() == exact[-1].argmax())
    if not np.isfinite(logits).all():
        return LogitsCheck(Check(None, allowed, False, "the logits are not finite"), float("inf"), same)
    found = deviation(logits, wide).fraction
    reason = "" if found <= allowed else f"the logits are off by {found:.2e} of their norm; {allowed:.2e} is allowed"
    return LogitsCheck(Check(found, allowed, not reason, reason), float(np.abs(logits - exact).max()), same)


def reset_peak_memory(root: Path = Path("/proc/self")) -> None:
    """Begin the peak of the resident set anew; where the system does not let us, it is the process's whole life's."""
    _give_back_freed_memory()
    try:
        (root / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return


def _give_back_freed_memory() -> None:
    """Return to the system what loading and packing have freed; glibc alone keeps it."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory_bytes(root: Path = Path("/proc/self")) -> float | None:
    """Return the peak of the resident set, None where the system does not say."""
    try:
        lines = (root / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values: Mapping[str, str] = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024.0 * int(values["VmHWM"].split()[0]) if "VmHWM" in values else None
