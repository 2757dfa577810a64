"""The public functions. Heavy imports happen inside them, so that `import codesign` costs nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from codesign.errors import InputError, did_you_mean
from codesign.setting import DEFAULT_MAX_LOSS_NATS, DEFAULT_SETTING, Setting

ANCHOR_MAX_NATS = 50.0

if TYPE_CHECKING:
    from codesign.checkpoint.stored import Checkpoint
    from codesign.cost.deployment import Deployment
    from codesign.cost.inference import InferencePrediction
    from codesign.hardware.hardware import Hardware
    from codesign.model.layers import Model
    from codesign.plan.file import Plan
    from codesign.plan.finish import Weights
    from codesign.plan.planner import Choices
    from codesign.plan.problem import Criterion
    from codesign.quality.prior import ModelPrior
    from codesign.quality.table import QualityTable
    from codesign.schemes.kv import KvFormat
    from codesign.schemes.scheme import Scheme


def load_hardware(name: str | os.PathLike[str]) -> Hardware:
    """Return a machine by name, alias or path of a YAML profile; InputError says what is wrong with it."""
    from codesign.hardware.file import load_hardware as load

    return load(name)


def load_model(name: str | os.PathLike[str]) -> Model:
    """Return a model by catalog name, Hugging Face id, config.json or folder; InputError says what is wrong with it."""
    from codesign.model.file import load_model as load

    return load(name)


def parse_scheme(text: str) -> Scheme:
    """Return the scheme of that name, such as `W4A16-g128`."""
    from codesign.schemes.catalog import parse_scheme as parse

    return parse(text)


def predict(hardware: Hardware, model: Model, scheme: str, setting: Setting = DEFAULT_SETTING) -> InferencePrediction:
    """Predict one scheme used wherever the library can, the rest in 16 bits.

    CapabilityError if the machine cannot run it, InputError for an unknown name.
    """
    from codesign.cost.deployment import deploy, uniform_assignment
    from codesign.cost.inference import predict_inference

    where = deploy(hardware, model, setting)
    return predict_inference(where, uniform_assignment(where, parse_scheme(scheme), setting.kv))


def plan(
    hardware: Hardware,
    model: Model,
    setting: Setting = DEFAULT_SETTING,
    *,
    objective: str = "tpot",
    budgets: Mapping[str, float] | None = None,
    pareto: tuple[str, str] | None = None,
) -> Plan:
    """Return the best plan for `objective` within `budgets` (criterion -> SI unit or nats).

    Criteria are tpot, ttft, throughput, memory, quality, energy, cost. Unless `budgets` says otherwise, memory is
    limited to the machine's and, unless quality is minimised, the loss to 0.05 nats. InfeasibleError if nothing fits.
    With a text in `setting` the real loss of a few plans near the best is measured, and the best by that is returned.
    """
    from codesign.cost.deployment import deploy, workload_warnings
    from codesign.plan.make import PlanRequest, make_plan

    goal = criterion(objective)
    where = deploy(hardware, model, setting)
    limits = {criterion(name): limit for name, limit in (budgets or {}).items()}
    limits.setdefault(criterion("memory"), where.capacity_bytes)
    if objective != "quality":
        limits.setdefault(criterion("quality"), DEFAULT_MAX_LOSS_NATS)
    request = PlanRequest(
        deployment=where,
        choices=choices(where, setting),
        objective=goal,
        budgets=limits,
        method=setting.method or "default",
        warnings=workload_warnings(where),
        pareto=None if pareto is None else (criterion(pareto[0]), criterion(pareto[1])),
        weights=_weights(setting),
    )
    return make_plan(request)


def _weights(setting: Setting) -> Weights | None:
    """Return what to measure plans with, None if no text is given."""
    from pathlib import Path

    from codesign.plan.finish import Weights

    return Weights(setting.weights, Path(setting.text)) if setting.text else None


def plan_as_is(hardware: Hardware, checkpoint: Checkpoint, setting: Setting = DEFAULT_SETTING) -> Plan:
    """Return the plan that states a checkpoint's own schemes, with what is predicted for them; nothing is chosen.

    InputError or CapabilityError where one of them cannot be predicted or run.
    """
    from codesign.cost.as_is import as_is_assignment
    from codesign.cost.deployment import deploy
    from codesign.plan.as_is import as_is_plan
    from codesign.quality.methods import METHODS

    where = deploy(hardware, checkpoint.model, setting)
    found = as_is_assignment(where, checkpoint, setting.kv)
    if not setting.method and checkpoint.method in METHODS:
        setting = replace(setting, method=checkpoint.method)
    schemes = tuple(dict.fromkeys(found.assignment.schemes))
    return as_is_plan(where, checkpoint, found, _quality(where, setting, schemes, (found.assignment.kv,)))


def criterion(name: str) -> Criterion:
    """Return the criterion of that name."""
    from codesign.plan.problem import Criterion

    names = [str(member) for member in Criterion]
    if name not in names:
        raise InputError(f'"{name[:40]}" is not a criterion.{did_you_mean(name, names)} Known are {", ".join(names)}.')
    return Criterion(name)


def anchored_prior(model: Model, anchor: str) -> ModelPrior:
    """Return the prior narrowed by one measured loss, written SCHEME:METHOD=NATS such as W4A16-g128:rtn=0.046."""
    from codesign.quality.prior import model_prior, with_anchor

    match = re.fullmatch(r"([\w-]+):([\w-]+)=([0-9.]+(?:e-?[0-9]+)?)", anchor.strip())
    if match is None or not 0 < (loss_nats := float(match[3])) < ANCHOR_MAX_NATS:
        raise InputError(f'The anchor "{anchor[:60]}" is not SCHEME:METHOD=NATS, such as W4A16-g128:rtn=0.046.')
    return with_anchor(model_prior(model), parse_scheme(match[1]), match[2], loss_nats)


def choices(where: Deployment, setting: Setting) -> Choices:
    """Return what the planner may choose from: the library's schemes or those named, KV formats, and their losses."""
    from codesign.cost.deployment import kv_format
    from codesign.cost.kernels import scheme_math
    from codesign.plan.planner import Choices
    from codesign.schemes.capability import candidate_kv_formats, candidate_schemes
    from codesign.schemes.catalog import parse_scheme as parse

    target = where.target
    schemes = candidate_schemes(target.hardware, target.library)
    if setting.schemes:
        named = tuple(parse(name) for name in setting.schemes)
        for scheme in named:
            scheme_math(scheme, target)
        schemes = (schemes[0], *(scheme for scheme in named if scheme != schemes[0]))
    kv_formats = candidate_kv_formats(target.hardware, target.library)
    if setting.kv != "auto":
        kv_formats = (kv_format(target, setting.kv),)
    quality = _quality(where, setting, schemes, kv_formats)
    return Choices(schemes, kv_formats, quality, setting.allow_unknown_quality)


def _quality(
    where: Deployment, setting: Setting, schemes: tuple[Scheme, ...], kv_formats: tuple[KvFormat, ...]
) -> QualityTable:
    """Return the losses of a file, or else of the prior."""
    from pathlib import Path

    from codesign.quality.table import read_quality, table_from_prior

    if setting.quality_file is not None:
        return read_quality(Path(setting.quality_file), where.model)
    prior = anchored_prior(where.model, setting.anchor) if setting.anchor else None
    return table_from_prior(where.model, schemes, kv_formats, setting.method, prior)
