"""What runs where: a scheme on a machine, in a library, for a matrix. The facts are in the two tables."""

import math
import re
from dataclasses import dataclass

from codesign.errors import InputError, did_you_mean
from codesign.hardware.hardware import Constraints, Hardware
from codesign.model.layers import Role
from codesign.schemes.capability_table import HARDWARE_RULES, SHAPE_RULES, Level, Rule, ShapeRule
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS, KvFormat
from codesign.schemes.library_table import (
    DEFAULT_LIBRARIES,
    LIBRARIES,
    LIBRARY_ALIASES,
    PROMINENT_SCHEMES,
    Library,
)
from codesign.schemes.scheme import PerBlock, PerGroup, PerTensor, Scheme

_VERSION = re.compile(r"-[vb]?\d[\w.+-]*$")
_PROFILE = "hardware profile"


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a scheme runs and in which math; `emulated` means that operands are converted to another math first."""

    level: Level
    math_dtype: str | None
    reason: str
    source: str

    @property
    def runs(self) -> bool:
        """Return whether it runs at all."""
        return self.level != "unsupported"


def capability(scheme: Scheme, hardware: Hardware) -> Capability:
    """Return whether the machine can multiply the scheme, natively or emulated, whatever the library."""
    problem = _constraint_problem(scheme, hardware.constraints)
    if problem:
        return Capability("unsupported", None, f"{hardware.title} {problem}.", _PROFILE)
    for rule in HARDWARE_RULES:
        if _named(scheme, rule.schemes) and rule.where.matches(hardware):
            answer = _by_rule(rule, hardware)
            if answer:
                return answer
    return _by_rates(scheme, hardware)


def _named(scheme: Scheme, names: tuple[str, ...]) -> bool:
    return scheme.family in names or scheme.name in names


def _by_rule(rule: Rule, hardware: Hardware) -> Capability | None:
    """Return the rule's answer, or None where the machine lacks the rates that the rule counts on."""
    math_dtype = _first_rate(rule.math_dtypes, hardware)
    if rule.math_dtypes and math_dtype is None:
        return None
    return Capability(rule.level, math_dtype, _sentence(rule.reason), rule.source)


def _by_rates(scheme: Scheme, hardware: Hardware) -> Capability:
    native = _first_rate(scheme.math_dtypes, hardware)
    if native:
        return Capability("native", native, f"Multiplies in {native}.", _PROFILE)
    wanted = " or ".join(scheme.math_dtypes)
    fallback = _first_rate(scheme.fallback_math_dtypes, hardware)
    if fallback:
        reason = f"{hardware.title} has no {wanted} arithmetic: operands are converted to {fallback}."
        return Capability("emulated", fallback, reason, _PROFILE)
    return Capability("unsupported", None, f"{hardware.title} has no {wanted} arithmetic.", _PROFILE)


def _first_rate(math_dtypes: tuple[str, ...], hardware: Hardware) -> str | None:
    return next((name for name in math_dtypes if name in hardware.peak_flop_per_s), None)


def _constraint_problem(scheme: Scheme, constraints: Constraints) -> str | None:
    if constraints.symmetric_only and not scheme.weights.symmetric:
        return "multiplies symmetric weights only, without zero points"
    static = scheme.activations.granularity is not None and not scheme.activations.dynamic
    if constraints.static_activations_only and not static:
        return "needs activations quantized with scales fixed beforehand"
    if constraints.static_activations_only and not isinstance(scheme.weights.granularity, PerTensor):
        return "needs one scale per weight tensor"
    return None


def _sentence(text: str) -> str:
    proper_name = text[1:2].isupper()  # vLLM
    return (text if proper_name else text[0].upper() + text[1:]) + "."


def parse_library(text: str) -> str:
    """Return the canonical name of a library, versions dropped; an empty text stays empty: the machine's default."""
    word = text.strip().lower().replace("_", "-").replace(" ", "-")
    for name in (word, _VERSION.sub("", word)):
        known = LIBRARY_ALIASES.get(name, name)
        if known in LIBRARIES or not known:
            return known
    guess = did_you_mean(word, (*LIBRARIES, *LIBRARY_ALIASES)) if len(word) < 64 else ""
    raise InputError(f"Unknown library {text[:64]!r}.{guess} Known are {', '.join(LIBRARIES)}.")


def default_library(hardware: Hardware) -> str:
    """Return the library that people deploy most on such a machine."""
    return next(name for where, name in DEFAULT_LIBRARIES if where.matches(hardware))


def library_of(text: str, hardware: Hardware) -> Library:
    """Return the library of that name, or the default of the machine for an empty text."""
    return LIBRARIES[parse_library(text) or default_library(hardware)]


def library_capability(scheme: Scheme, hardware: Hardware, library: str = "") -> Capability:
    """Return whether the scheme runs on the machine with the kernels of that library."""
    on_hardware = capability(scheme, hardware)
    if not on_hardware.runs:
        return on_hardware
    chosen = library_of(library, hardware)
    for kernels in chosen.kernels:
        if scheme.name in kernels.schemes and kernels.where.matches(hardware):
            return Capability(on_hardware.level, on_hardware.math_dtype, on_hardware.reason, kernels.source)
    for refusal in chosen.refusals:
        if _named(scheme, refusal.schemes) and refusal.where.matches(hardware):
            return Capability("unsupported", None, _sentence(refusal.reason), refusal.source)
    reason = f"{chosen.title} has no kernel for {scheme} on {hardware.title} that we know of."
    return Capability("unsupported", None, reason, "kernel table of this project")


def baseline_scheme(hardware: Hardware) -> Scheme:
    """Return what an unquantized model is stored in: BF16, else FP16, else the int8 of integer-only machines.

    A CPU without 16-bit arithmetic still stores FP16 and converts it to fp32.
    """
    bf16, fp16 = parse_scheme("BF16"), parse_scheme("FP16")
    if capability(bf16, hardware).level == "native":
        return bf16
    return fp16 if capability(fp16, hardware).runs else parse_scheme("W8A8-tensor")


def candidate_schemes(hardware: Hardware, library: str = "") -> tuple[Scheme, ...]:
    """Return the schemes that a planner considers, the unquantized baseline first."""
    considered = _considered(library_of(library, hardware), hardware)
    runnable = (scheme for scheme in considered if library_capability(scheme, hardware, library).runs)
    return tuple(dict.fromkeys((baseline_scheme(hardware), *runnable)))


def refused_schemes(hardware: Hardware, library: str = "") -> tuple[tuple[Scheme, str], ...]:
    """Return well-known schemes that the planner leaves out there, each with the reason."""
    candidates = set(candidate_schemes(hardware, library))
    known = (*_considered(library_of(library, hardware), hardware), *map(parse_scheme, PROMINENT_SCHEMES))
    answers = ((scheme, library_capability(scheme, hardware, library)) for scheme in dict.fromkeys(known))
    return tuple(
        (scheme, answer.reason) for scheme, answer in answers if scheme not in candidates and answer.level != "native"
    )


def _considered(library: Library, hardware: Hardware) -> tuple[Scheme, ...]:
    names = (name for where, group in library.candidates if where.matches(hardware) for name in group)
    return tuple(map(parse_scheme, names))


def candidate_kv_formats(hardware: Hardware, library: str = "") -> tuple[KvFormat, ...]:
    """Return the KV cache formats that a planner considers, the 16-bit one of the machine first."""
    names = library_of(library, hardware).kv_formats
    usual = ("bf16", "fp16") if "bf16" in hardware.peak_flop_per_s else ("fp16", "bf16")
    sixteen = next((KV_FORMATS[name] for name in usual if name in names), None)
    quantized = (KV_FORMATS[name] for name in names if KV_FORMATS[name].quantized)
    allowed = tuple(kv for kv in quantized if hardware.kind == "gpu" or not kv.name.startswith("fp8"))
    return allowed if sixteen is None else (sixteen, *allowed)


def shape_problem(scheme: Scheme, n: int, k: int, hardware: Hardware, library: str = "") -> str | None:
    """Return why no known kernel of the library multiplies an [n, k] matrix of this scheme there, or None."""
    if not scheme.quantized:
        return None
    return storage_problem(scheme, k) or _kernel_shape_problem(scheme, n, k, hardware, library)


def shape_rule(scheme: Scheme, hardware: Hardware, library: str = "") -> ShapeRule | None:
    """Return which divisors of n and k the library's kernels need, None if any size will do."""
    chosen = library_of(library, hardware).name
    for rule in SHAPE_RULES:
        here = not rule.libraries or chosen in rule.libraries
        if here and _named(scheme, rule.schemes) and rule.where.matches(hardware):
            return rule
    return None


def size_multiples(scheme: Scheme, hardware: Hardware, library: str = "") -> tuple[int, int]:
    """Return of what n and k must be multiples for the scheme to be stored and multiplied there."""
    rule = shape_rule(scheme, hardware, library) if scheme.quantized else None
    n, k = (rule.n_divisor, rule.k_divisor) if rule else (1, 1)
    stored = 1 if scheme.weights.flattened else scheme.scale_block or 1
    step = hardware.constraints.alignment_elements
    return math.lcm(n, step), math.lcm(k, step, stored, scheme.weights.block_size)


def storage_problem(scheme: Scheme, k: int) -> str | None:
    """Return why rows of k values do not hold whole groups or blocks of a scheme, or None."""
    weights = scheme.weights
    if k % weights.block_size:
        return f"{scheme} stores blocks of {weights.block_size} values, and k = {k} is not a multiple (ggml-common.h)."
    if weights.flattened:
        return None
    match weights.granularity:
        case PerGroup(size) | PerBlock(_, size) if k % size:
            return f"{scheme} has one scale per {size} values along k, and k = {k} is not a multiple."
    return None


def _kernel_shape_problem(scheme: Scheme, n: int, k: int, hardware: Hardware, library: str) -> str | None:
    rule = shape_rule(scheme, hardware, library)
    if rule is not None and (n % rule.n_divisor or k % rule.k_divisor):
        needs = f"n a multiple of {rule.n_divisor} and k of {rule.k_divisor}"
        return f"{scheme} kernels need {needs} ({rule.reason}: {rule.source}); here n = {n}, k = {k}."
    step = hardware.constraints.alignment_elements
    if n % step or k % step:
        return f"{hardware.title} needs n and k in multiples of {step}; here n = {n}, k = {k}."
    return None


_ROUTERS: tuple[Role, ...] = ("router", "shared_router")


def role_problem(scheme: Scheme, role: Role, hardware: Hardware, library: str = "") -> str | None:
    """Return why this library keeps layers of this role in 16 bits, or None."""
    if not scheme.quantized:
        return None
    chosen = library_of(library, hardware)
    if role in _ROUTERS:
        return (
            "Routers stay in 16 bits: they are small and choose the experts (llm-compressor and llama.cpp skip them)."
        )
    if role == "embedding" and not chosen.quantizes_embedding:
        return f"{chosen.title} looks embeddings up in 16 bits ({chosen.source})."
    if role == "head" and not chosen.quantizes_head:
        return f"{chosen.title} multiplies the head in 16 bits ({chosen.source})."
    return None
