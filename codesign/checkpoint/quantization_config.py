"""Read the `quantization_config` of a checkpoint in the dialect of the tool that wrote it.

The tensors decide in what a layer is stored; the config tells what they cannot: whether zero points matter, how
activations are quantized, the KV cache.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from codesign.checkpoint.announced import BITS_MAX, Activations, Announced, Number, Quantization, Rule, Section
from codesign.checkpoint.name_pattern import pattern_matcher
from codesign.checkpoint.torchao_config import read_torchao
from codesign.model.config import shown

_REGULAR = re.compile(r"[*+?\[\](){}|^$\\]")  # what makes a name a pattern

_A8_PER_TOKEN = Activations("float", 8, True, "token")
_A8_STATIC = Activations("float", 8, False, "tensor")
_A4_GROUPS = Activations("float", 4, True, "group")

# Source: NVIDIA/TensorRT-Model-Optimizer, modelopt/torch/export/quant_utils.py (QUANTIZATION_* names).
_MODELOPT: Mapping[str, Announced] = {
    "FP8": Announced(8, None, True, _A8_STATIC),
    "FP8_PER_CHANNEL_PER_TOKEN": Announced(8, None, True, _A8_PER_TOKEN),
    "FP8_PB_WO": Announced(8, None, True),
    "W4A16_AWQ": Announced(4, None, True),
    "W4A8_AWQ": Announced(4, None, True, _A8_STATIC),
    "W8A16": Announced(8, None, True),
    "W8A8_SQ_PER_CHANNEL": Announced(8, None, True, Activations("int", 8, False, "tensor")),
    "NVFP4": Announced(4, 16, True, _A4_GROUPS),
    "NVFP4_AWQ": Announced(4, 16, True, _A4_GROUPS),
    "W4A16_NVFP4": Announced(4, 16, True),
    "MXFP8": Announced(8, 32, True, Activations("float", 8, True, "group")),
    "MXFP4": Announced(4, 32, True, _A4_GROUPS),
}


def read_quantization(values: Mapping[str, Any], where: str) -> Quantization:
    """Return what a config says; an unknown method is named in a warning, and the tensors speak for themselves."""
    if not values:
        return Quantization()
    section = Section(f"{where}: quantization_config", values)
    method = section.text("quant_method").lower() or _guessed_method(section)
    reader = _READERS.get(method)
    if reader is None:
        warning = f"{section.where}: the method {shown(method)} is not known; layers are read by their tensors alone."
        return Quantization(method[:40] or "unknown", warnings=(warning,))
    return reader(section)


def _guessed_method(section: Section) -> str:
    if section.boolean("load_in_4bit") or section.boolean("load_in_8bit"):
        return "bitsandbytes"
    if "config_groups" in section.values:
        return "compressed-tensors"
    return "modelopt" if "quantization" in section.values or "quant_algo" in section.values else ""


def _compressed_tensors(section: Section) -> Quantization:
    """Source: vllm-project/compressed-tensors, quantization/quant_config.py and utils/match.py."""
    named: list[Rule] = []
    patterns: list[Rule] = []
    classes: list[Rule] = []
    rules, warnings = _targets(section.texts("ignore"), None)
    groups = section.section("config_groups")
    for _, group in groups.sections() if groups else ():
        announced = _group(group)
        for target in group.texts("targets"):
            found, more = _targets((target,), announced)
            (patterns if target.startswith("re:") else classes if _is_class(target) else named).extend(found)
            warnings += more
    kv = section.section("kv_cache_scheme")
    ordered = (*rules, *named, *patterns, *classes)
    return Quantization("compressed-tensors", ordered, None, _kv_words(kv), _warned(section, warnings))


def _group(group: Section) -> Announced:
    weights, inputs = group.section("weights"), group.section("input_activations")
    if weights is None:
        return Announced(activations=_activations(inputs))
    return Announced(
        weights.integer("num_bits", high=BITS_MAX),
        _group_size(weights),
        weights.boolean("symmetric"),
        _activations(inputs),
    )


def _activations(section: Section | None) -> Activations | None:
    if section is None:
        return None
    bits = section.integer("num_bits", high=BITS_MAX)
    if bits is None or bits >= 16:
        return None
    dynamic = section.values.get("dynamic")
    return Activations(_number(section), bits, bool(dynamic), section.text("strategy") or "tensor")


def _number(section: Section) -> Number:
    return "float" if section.text("type") == "float" else "int"


def _kv_words(section: Section | None) -> str:
    """Return the cache's format: a name of `schemes/kv.py` where it has one."""
    if section is None:
        return ""
    bits, number = section.integer("num_bits", high=BITS_MAX), _number(section)
    strategy = section.text("strategy") or "tensor"
    if (bits, number, strategy) == (8, "float", "tensor"):
        return "fp8"
    return f"{'fp' if number == 'float' else 'int'}{bits} per {strategy}"


def _is_class(target: str) -> bool:
    return target.isalnum() and target[:1].isupper()


def _targets(targets: Iterable[str], announced: Announced | None) -> tuple[list[Rule], list[str]]:
    """Return one rule per target: a pattern after `re:`, a class of modules, or the name of one."""
    rules, unknown, names = [], [], []
    for target in targets:
        matches = pattern_matcher(target[3:]) if target.startswith("re:") else _class_matcher(target)
        if not target.startswith("re:") and not _is_class(target):
            names.append(target)
        elif matches is None:
            unknown.append(target)
        else:
            rules.append(Rule(matches, announced))
    return [*_named_rules(dict.fromkeys(names, announced)), *rules], unknown


def _class_matcher(target: str) -> Callable[[str], bool]:
    """Match what is of a class: all but embeddings are linear; other classes hold no layers of ours."""
    if target == "Embedding":
        return lambda module: "embed" in module
    return lambda module: target == "Linear" and "embed" not in module


def _name_matcher(*names: str) -> Callable[[str], bool]:
    """Match modules of these names, whatever they lie in; lists of thousands of names cost no more than one."""
    known = frozenset(names)

    def matches(module: str) -> bool:
        rest = module
        while rest not in known:
            _, dot, rest = rest.partition(".")
            if not dot:
                return False
        return True

    return matches


def _named_rules(announced_by_name: Mapping[str, Announced | None]) -> list[Rule]:
    """Return one rule for all modules that are announced alike."""
    names: dict[Announced | None, list[str]] = {}
    for name, announced in announced_by_name.items():
        names.setdefault(announced, []).append(name)
    return [Rule(_name_matcher(*found), announced) for announced, found in names.items()]


def _inside_matcher(name: str) -> Callable[[str], bool]:
    """Match modules whose name contains another, as AWQ and bitsandbytes skip them."""
    if "*" in name:
        return _glob_matcher(f"*{name}*")
    return lambda module: name in module


def _skipped(section: Section, *keys: str) -> tuple[Rule, ...]:
    return tuple(Rule(_inside_matcher(name), None) for key in keys for name in section.texts(key))


def _warned(section: Section, patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        f"{section.where}: the pattern {shown(pattern)} is not understood; the tensors alone tell what it covers."
        for pattern in patterns
    )


def _group_size(section: Section, key: str = "group_size") -> int | None:
    size = section.integer(key, low=-1)
    return size if size and size > 0 else None


def _gptq(section: Section) -> Quantization:
    """Source: ModelCloud/GPTQModel, gptqmodel/quantization/config.py (`dynamic_get`: the first match decides)."""
    usual = _integer_rule(section)
    rules, unknown = [], []
    dynamic = section.section("dynamic")
    for pattern, given in (dynamic.values if dynamic else {}).items():
        matches = pattern_matcher(pattern[2:] if pattern[:2] in ("+:", "-:") else pattern)
        if matches is None:
            unknown.append(pattern)
        elif pattern.startswith("-:"):
            rules.append(Rule(matches, None))
        else:
            overrides = given if isinstance(given, dict) else {}
            rules.append(Rule(matches, _integer_rule(Section(section.where, {**section.values, **overrides}))))
    version = section.text("checkpoint_format") or "gptq"
    method = version if version.startswith("gptq") else f"gptq ({version[:40]})"
    rules += _skipped(section, "modules_to_not_convert")
    if not section.boolean("lm_head"):
        rules.append(Rule(_name_matcher("lm_head"), None))
    return Quantization(method, tuple(rules), usual, "", _warned(section, unknown))


def _integer_rule(section: Section) -> Announced:
    symmetric = section.boolean("sym") if "sym" in section.values else True
    return Announced(section.integer("bits", high=BITS_MAX), _group_size(section), symmetric)


def _awq(section: Section) -> Quantization:
    """Source: casper-hansen/AutoAWQ, awq/models/_config.py."""
    bits = section.integer("bits", high=BITS_MAX) or section.integer("w_bit", high=BITS_MAX)
    group = _group_size(section) or _group_size(section, "q_group_size")
    usual = Announced(bits, group, symmetric=section.boolean("zero_point") is False)
    rules = (*_skipped(section, "modules_to_not_convert"), Rule(_name_matcher("lm_head"), None))
    return Quantization("awq", rules, usual)


def _auto_round(section: Section) -> Quantization:
    """Source: intel/auto-round, auto_round/export and inference/convert_model.py (`extra_config`)."""
    named: dict[str, Announced | None] = {}
    patterns, unknown = [], []
    extra = section.section("extra_config")
    for name, overrides in extra.sections() if extra else ():
        announced = _integer_rule(Section(overrides.where, {**section.values, **overrides.values}))
        named[name] = announced if (announced.bits or 0) < 16 else None
        if not _REGULAR.search(name):
            continue
        matches = pattern_matcher(name)
        if matches is None:
            unknown.append(name)
        else:
            patterns.append(Rule(matches, named[name]))
    rules = (*_named_rules(named), *patterns, Rule(_name_matcher("lm_head"), None))
    return Quantization("auto-round", rules, _integer_rule(section), "", _warned(section, unknown))


def _bitsandbytes(section: Section) -> Quantization:
    eight = section.boolean("load_in_8bit") or section.boolean("_load_in_8bit")
    activations = Activations("int", 8, True, "token") if eight else None
    rules = (*_skipped(section, "llm_int8_skip_modules"), Rule(_name_matcher("lm_head"), None))
    return Quantization("bitsandbytes", rules, Announced(8 if eight else 4, None, True, activations))


def _fp8(section: Section) -> Quantization:
    """FP8 of DeepSeek, Qwen and vLLM: whole tensors or blocks. Source: transformers, FineGrainedFP8Config."""
    blocks = section.values.get("weight_block_size") is not None
    dynamic = section.text("activation_scheme") != "static"
    strategy = "group" if blocks else "token" if dynamic and section.text("quant_method") == "fbgemm_fp8" else "tensor"
    usual = Announced(8, None, True, Activations("float", 8, dynamic, strategy))
    rules = _skipped(section, "modules_to_not_convert", "ignored_layers")
    return Quantization(section.text("quant_method"), rules, usual)


def _mxfp4(section: Section) -> Quantization:
    return Quantization("mxfp4", _skipped(section, "modules_to_not_convert"), Announced(4, 32, True))


def _modelopt(section: Section) -> Quantization:
    """Source: modelopt/torch/export (`hf_quant_config.json`); newer configs have the groups of compressed-tensors."""
    inner = section.section("quantization") or section
    excluded = (*inner.texts("exclude_modules"), *inner.texts("ignore"))
    rules = [Rule(_glob_matcher(name), None) for name in excluded]
    layers = inner.section("quantized_layers")
    by_name = {name: given.text("quant_algo") for name, given in layers.sections()} if layers else {}
    unknown = set(by_name.values()) - _MODELOPT.keys()
    rules += _named_rules({name: _MODELOPT.get(algorithm, Announced()) for name, algorithm in by_name.items()})
    algorithm = inner.text("quant_algo")
    mixed = algorithm == "MIXED_PRECISION"
    usual = None if mixed else _MODELOPT.get(algorithm, Announced())
    if not mixed:
        unknown |= {algorithm} - _MODELOPT.keys()
    kv = inner.text("kv_cache_quant_algo").lower() or _kv_words(section.section("kv_cache_scheme"))
    warnings = tuple(
        f"{inner.where}: quant_algo: {shown(name)} is not known; layers are read by their tensors alone."
        for name in sorted(unknown)
    )
    return Quantization("modelopt", tuple(rules), usual, kv, warnings)


def _glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Match names with `*`; Python's translation of such patterns does not backtrack."""
    return lambda module: fnmatch.fnmatchcase(module, pattern)


def _hqq(section: Section) -> Quantization:
    inner = section.section("quant_config") or section
    weights = inner.section("weight_quant_params") or inner
    usual = Announced(weights.integer("nbits", high=BITS_MAX), _group_size(weights), False)
    return Quantization("hqq", _skipped(section, "skip_modules"), usual)


def _torchao(section: Section) -> Quantization:
    return read_torchao(section, _skipped(section, "modules_to_not_convert"))


_READERS: Mapping[str, Callable[[Section], Quantization]] = {
    "compressed-tensors": _compressed_tensors,
    "compressed_tensors": _compressed_tensors,
    "gptq": _gptq,
    "gptqmodel": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "auto_round": _auto_round,
    "intel/auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "hqq": _hqq,
    "torchao": _torchao,
}
