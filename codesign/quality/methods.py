"""Which quantization methods a scheme is made with, and which of them a deployer would take."""

from codesign.errors import InputError, did_you_mean
from codesign.schemes.scheme import PerGroup, Scheme

# The first is the default; the interval of an unstated method covers all of them.
_USUAL = {
    "weight_only": ("gptq", "awq", "rtn"),
    "w8a16": ("rtn",),
    "w8a8": ("smoothquant", "rtn"),
    "w4a8": ("qoq",),
    "w4a4": ("rtn",),
    "gguf": ("imatrix", "llama.cpp"),
    "other": ("rtn",),
}
_SPECIAL = {
    "weight_only": ("omniquant", "autoround", "efficientqat", "hqq", "quarot", "spinquant", "smoothquant"),
    "w8a8": ("gptq", "awq"),
    "w4a8": ("rtn",),
    "w4a4": ("gptq", "smoothquant", "quarot", "spinquant", "atom"),
}
METHODS = tuple(sorted({name for table in (_USUAL, _SPECIAL) for names in table.values() for name in names}))


def _kind(scheme: Scheme) -> str:
    if scheme.family in _USUAL:
        return scheme.family
    integer_weights = scheme.weights.number.startswith("int") and scheme.weight_only
    return "weight_only" if integer_weights else "other"


def usual_methods(scheme: Scheme) -> tuple[str, ...]:
    """Return the methods that a checkpoint of unstated method may be made with, the likeliest first."""
    return _USUAL[_kind(scheme)]


def default_method(scheme: Scheme) -> str:
    """Return what a deployer would normally use: gptq for 3 and 4 bits, smoothquant for W8A8, rtn for floats."""
    return usual_methods(scheme)[0]


def method_for(scheme: Scheme, wanted: str) -> str:
    """Return the wanted method where it makes this scheme, else the default; InputError for an unknown name."""
    word = wanted.strip().lower()
    if word and word not in METHODS:
        guess = did_you_mean(word[:40], METHODS)
        raise InputError(f'Unknown quantization method "{wanted[:40]}".{guess} Known are {", ".join(METHODS)}.')
    kind = _kind(scheme)
    return word if word in (*_USUAL[kind], *_SPECIAL.get(kind, ())) else default_method(scheme)


def group_size_of(scheme: Scheme) -> int | None:
    """Return the group size of an integer scheme in groups, None for others."""
    granularity = scheme.weights.granularity
    grouped = isinstance(granularity, PerGroup) and scheme.family.startswith("w")
    return granularity.size if grouped and isinstance(granularity, PerGroup) else None
