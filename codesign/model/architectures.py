"""From the values of a Hugging Face config.json to a model: which builder reads which `model_type`."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from codesign.errors import InputError
from codesign.model.classic import (
    build_bloom,
    build_falcon,
    build_gpt2,
    build_gpt_neox,
    build_opt,
    build_phi,
    build_stablelm,
)
from codesign.model.config import Config, shown
from codesign.model.deepseek import build_deepseek
from codesign.model.layers import Model
from codesign.model.llama_like import TRAITS, build_gemma3, build_llama_like, build_phi3

BUILDERS: dict[str, Callable[[Config], Model]] = {
    "gpt2": build_gpt2,
    "opt": build_opt,
    "bloom": build_bloom,
    "gpt_neox": build_gpt_neox,
    "falcon": build_falcon,
    "RefinedWeb": build_falcon,
    "RefinedWebModel": build_falcon,
    "phi": build_phi,
    "phi3": build_phi3,
    "stablelm": build_stablelm,
    "deepseek_v2": build_deepseek,
    "deepseek_v3": build_deepseek,
    "gemma3": build_gemma3,
    **dict.fromkeys(TRAITS, build_llama_like),
}


def build_model(values: Any, where: str) -> Model:
    """Return the model that a config describes; `where` names the file in messages."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: a list or a single value is given; a config.json holds one object.")
    architecture = known_model_type(values, where)
    return BUILDERS[architecture](Config(values, where, architecture))


def known_model_type(values: Mapping[str, Any], where: str) -> str:
    """Return the `model_type` if it is known; another architecture is never taken in its place."""
    given = values.get("model_type")
    if isinstance(given, str) and given in BUILDERS:
        return given
    code = " Code that auto_map names is never loaded." if "auto_map" in values else ""
    known = f"known are {', '.join(BUILDERS)}.{code}"
    if not isinstance(given, str):
        said = "nothing is given" if given is None else f"{shown(given)} is given"
        raise InputError(f"{where}: model_type: {said}; a text is needed: {known}")
    near = difflib.get_close_matches(given[:80], BUILDERS, n=3, cutoff=0.5)
    nearest = f" Nearest are {', '.join(near)}." if near else ""
    raise InputError(f"{where}: model_type: {shown(given)} is not an architecture that is known.{nearest} All {known}")


def config_warnings(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return what a reader of the model should know about its config."""
    warnings = []
    if "auto_map" in values:
        warnings.append(
            f"{where}: auto_map: names code of its own, which is never loaded; "
            f"the shapes are those of the known architecture {values['model_type']}."
        )
    if values["model_type"] == "gemma3":
        warnings.append(f"{where}: only the language model (text_config) is counted, not what else the config holds.")
    return tuple(warnings)
