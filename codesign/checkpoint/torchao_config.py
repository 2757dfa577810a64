"""What torchao's config of a checkpoint says of each module.

Source: torchao 0.18, core/config.py (`_type`, `_data`) and quantization/quant_api.py (FqnToConfig: exact names, then
keys `re:...` that match in full, then `_default`); Transformers 5, utils/quantization_config.py: TorchAoConfig writes
it as the `default` of `quant_type`.
"""

from collections.abc import Callable, Mapping

from codesign.checkpoint.announced import Activations, Announced, Quantization, Rule, Section
from codesign.checkpoint.name_pattern import pattern_matcher

_INT8 = Activations("int", 8, True, "token")
_FP8 = Activations("float", 8, True, "token")
_BY_TYPE: Mapping[str, Announced] = {
    "Int4WeightOnlyConfig": Announced(4),
    "Int8WeightOnlyConfig": Announced(8, None, True),
    "Int8DynamicActivationInt8WeightConfig": Announced(8, None, True, _INT8),
    "Int8DynamicActivationIntxWeightConfig": Announced(4, None, True, _INT8),
    "Float8WeightOnlyConfig": Announced(8, None, True),
    "Float8DynamicActivationFloat8WeightConfig": Announced(8, None, True, _FP8),
}
_MAPS = ("FqnToConfig", "ModuleFqnToConfig")


def read_torchao(section: Section, skipped: tuple[Rule, ...]) -> Quantization:
    """Return the rules of the config; a type that is not known here announces that weights are quantized, not how."""
    given = section.values.get("quant_type")
    config = section.section("quant_type") if isinstance(given, dict) else None
    config = config.section("default") if config else None
    if config is None:
        return Quantization("torchao", skipped, Announced())
    if config.text("_type") not in _MAPS:
        return Quantization("torchao", skipped, _announced(config))
    data = config.section("_data")
    keys = data and (data.section("fqn_to_config") or data.section("module_fqn_to_config"))
    return _by_name(keys, skipped) if keys else Quantization("torchao", skipped, None)


def _by_name(keys: Section, skipped: tuple[Rule, ...]) -> Quantization:
    exact: list[Rule] = []
    patterns: list[Rule] = []
    default: Announced | None = None
    unknown: list[str] = []
    for key in keys.values:
        config = keys.section(key)
        announced = _announced(config) if config else None
        matches = pattern_matcher(f"({key[3:]})$") if key.startswith("re:") else _name_matcher(key)
        if key == "_default":
            default = announced
        elif matches is None:
            unknown.append(f"The pattern {key[:80]} of the quantization config is not understood.")
        else:
            (patterns if key.startswith("re:") else exact).append(Rule(matches, announced))
    return Quantization("torchao", (*skipped, *exact, *patterns), default, warnings=tuple(unknown))


def _name_matcher(key: str) -> Callable[[str], bool]:
    name = key.removesuffix(".weight")
    return lambda module: module == name


def _announced(config: Section) -> Announced:
    return _BY_TYPE.get(config.text("_type"), Announced())
