"""Plans for tests of recipes: the planner's own, and random ones that a tool can make; names of modules to expand."""

import random
from dataclasses import replace
from functools import lru_cache

import codesign
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.plan.file import Plan
from codesign.plan.recipes.make import Inputs, make_bench, model_source
from codesign.plan.recipes.registry import find_tool
from codesign.quality.methods import method_for
from codesign.schemes.catalog import parse_scheme

DECOYS = ("model.norm", "model.layers.0.input_layernorm", "model.vision_tower.encoder.layers.0.self_attn.q_proj")


@lru_cache(maxsize=64)
def planned(model: str, hardware: str, library: str = "", **options: object) -> Plan:
    """Return the planner's plan."""
    setting = codesign.Setting(library=library, allow_unknown_quality=True, **options)
    return codesign.plan(load_hardware(hardware), load_model(model), setting, budgets={"memory": 1e15})


def inputs_of(plan: Plan) -> Inputs:
    """Return the plan with its machine and model."""
    return Inputs(plan, load_hardware(plan.hardware), load_model(plan.model), model_source(plan.model))


def shuffled(plan: Plan, tool: str, pool: tuple[str, ...], seed: int, method: str = "") -> Plan:
    """Return the plan with a random scheme of the pool in every group that the tool can give it to."""
    chance = random.Random(seed)
    bench = make_bench(inputs_of(plan), find_tool(tool))
    groups = []
    for group, one in zip(fused_groups(bench.deployment.model), plan.groups, strict=True):
        name = chance.choice(pool)
        scheme = parse_scheme(name)
        how = method_for(scheme, method) if scheme.quantized else ""
        legal = bench.problem(group, scheme, how) is None
        groups.append(replace(one, scheme=name if legal else plan.baseline_scheme, method=how if legal else ""))
    return replace(plan, groups=tuple(groups))


def module_names(plan: Plan) -> dict[str, str]:
    """Return every module of the Hugging Face model that multiplies, with the scheme that the plan gives it."""
    model = load_model(plan.model)
    schemes = {(one.block_index, one.name): one.scheme for one in plan.groups}
    names = {}
    for group in fused_groups(model):
        scheme = schemes[group.key]
        for layer in group.layers:
            name = layer.name.removesuffix(".gate").removesuffix(".up") if "gate_up_proj." in layer.name else layer.name
            names[name] = scheme
        if group.experts is not None:
            for name in expert_names(group.experts.name, model.architecture):
                names[name] = scheme
    return names


def expert_names(path: str, architecture: str) -> list[str]:
    """Return modules of the first and last experts as checkpoints, Transformers 5 and fused weights name them."""
    if architecture == "gpt_oss":
        return [f"{path}.gate_up_proj", f"{path}.down_proj", f"{path}.3.gate_proj"]
    parts = ("w1", "w2", "w3") if architecture == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    names = [f"{path}.{expert}.{part}" for expert in (0, 7, 10) for part in parts]
    if architecture == "mixtral":
        later = path.replace("block_sparse_moe", "mlp")
        names += [f"{later}.{expert}.gate_proj" for expert in (0, 7)]
    return names
