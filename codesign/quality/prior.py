"""The published prior: what a scheme loses on a model that nobody measured, with the interval that history supports.

loss = loss of the reference model x model factor, both fitted on published tables. How wide the 80 % interval is
depends on what is known: the model itself, its family, nothing, or one measured loss (an anchor).
"""

import math
from dataclasses import dataclass

from codesign.errors import InputError
from codesign.model.layers import Model
from codesign.quality.estimate import NO_LOSS, LossEstimate, LossOrigin, Unknown, perplexity_ratio
from codesign.quality.factors import SchemeFactor, group_factor, load_factors, scheme_factors
from codesign.quality.families import family_of, published_name, untuned_name
from codesign.quality.methods import default_method, group_size_of, method_for, usual_methods
from codesign.quality.risk import risk
from codesign.schemes.scheme import Scheme

__all__ = ["ModelPrior", "default_method", "model_prior", "perplexity_ratio", "prior_loss", "with_anchor"]

# A family of fewer models in the fit says no more than that the model is none of the others.
_FAMILY_MODELS_MIN = 3
_MODEL_CELLS_MIN = 4


@dataclass(frozen=True, slots=True)
class ModelPrior:
    """What is known of one model: its factor, the half-width of the 80 % interval in ln d, and why."""

    published: str
    factor: float
    half_width: float
    origin: LossOrigin
    evidence: str

    def loss(self, scheme: Scheme, method: str = "") -> LossEstimate | Unknown:
        """Return the loss of a uniform scheme, head in 16 bits; an empty method means that it is not known.

        Then the value is that of the default method and the interval covers all usual ones.
        """
        if not scheme.quantized:
            return NO_LOSS
        chosen = self._loss(scheme, method_for(scheme, method))
        if method or isinstance(chosen, Unknown):
            return chosen
        others = [self._loss(scheme, name) for name in usual_methods(scheme)]
        known = [other for other in others if isinstance(other, LossEstimate)]
        low, high = min(other.low_nats for other in known), max(other.high_nats for other in known)
        return LossEstimate(chosen.loss_nats, low, high, chosen.origin, chosen.method, chosen.evidence)

    def _loss(self, scheme: Scheme, method: str) -> LossEstimate | Unknown:
        problem = self._problem(scheme, method)
        if problem:
            return Unknown(problem)
        row = _factor(scheme, method)
        if row is None:
            return Unknown(f"no published perplexity of {scheme} made with {method}")
        value = row.loss_nats
        half_width = math.log(row.factor_80)
        if _scales(row):
            value *= self.factor * group_factor(group_size_of(scheme))
            half_width = max(half_width, self.half_width)
        resolution = load_factors().resolution_nats
        return LossEstimate(
            value,
            max(0.0, value * math.exp(-half_width) - resolution),
            value * math.exp(half_width) + resolution,
            self.origin,
            method,
            _evidence(row, self.evidence),
        )

    def _problem(self, scheme: Scheme, method: str) -> str | None:
        """Return why the scheme has no predictable loss on this model, or None."""
        cells = load_factors().risky.get(f"{_published(scheme)} {method}")
        if cells is not None and self.published in cells.collapsed:
            return f"{scheme} made with {method} is published to collapse on {self.published}"
        reason = risk(scheme, method)
        if reason is None or (cells is not None and self.published in cells.measured):
            return None
        return f"{reason}, and there is no measurement of {scheme} with {method} on this model"


def _scales(row: SchemeFactor) -> bool:
    """Return whether the loss differs between models by more than its noise."""
    return f"{row.scheme} {row.method}" not in load_factors().unscaled


def _evidence(row: SchemeFactor, about_model: str) -> str:
    plural = "s" if len(row.sources) > 1 else ""
    cells = f"{row.cells} published cell{'s' if row.cells > 1 else ''} in {len(row.sources)} source{plural}"
    return "; ".join(filter(None, (cells, row.note, about_model)))


def _published(scheme: Scheme) -> str:
    """Return the name in the published tables, which leave the kind of zero points open."""
    return scheme.name.removesuffix("-asym16").removesuffix("-asym")


def _factor(scheme: Scheme, method: str) -> SchemeFactor | None:
    name, size = _published(scheme), group_size_of(scheme)
    if scheme.family == "w8a16":
        name = "W8A16"  # the tables do not resolve what groups change at 8 bits
    elif size is not None:
        name = name.removesuffix(f"-g{size}") + "-g128"
    return scheme_factors().get((name, method))


def model_prior(model: Model | str) -> ModelPrior:
    """Return what the published tables say about a model, going by its name."""
    factors = load_factors()
    name = model if isinstance(model, str) else model.name
    exact, base = published_name(name), untuned_name(name)
    if exact in factors.models:
        row = factors.models[exact]
        known = "cell" if row.cells >= _MODEL_CELLS_MIN else "family"
        text = f"model measured in {row.cells} cells"
        return ModelPrior(exact, row.factor, factors.half_width(known), LossOrigin.PRIOR, text)
    if base in factors.models:
        text = f"as its base model {base}"
        return ModelPrior(exact, factors.models[base].factor, factors.half_width("family"), LossOrigin.PRIOR, text)
    family = factors.families.get(family_of(name), factors.families["other"])
    if family.models < _FAMILY_MODELS_MIN:
        width, text = factors.half_width("global"), "model and family not measured"
    else:
        width, text = factors.half_width("family"), f"{family.models} models of its family measured well"
    return ModelPrior(exact, family.factor, width, LossOrigin.PRIOR, text)


def with_anchor(prior: ModelPrior, scheme: Scheme, method: str, measured_loss_nats: float) -> ModelPrior:
    """Return the prior narrowed by one measured loss of this model; it replaces the model factor."""
    factors = load_factors()
    floor_nats = 2 * factors.resolution_nats
    made_with = method_for(scheme, method)
    row = _factor(scheme, made_with)
    usable = row is not None and _scales(row) and risk(scheme, made_with) is None
    if row is None or not usable or not floor_nats < measured_loss_nats < math.inf:
        raise InputError(
            f"A loss of {measured_loss_nats:g} nats with {scheme} cannot anchor the prior; measure W4A16-g128 with "
            f"rtn: its loss must be finite and above {floor_nats:g} nats."
        )
    factor = measured_loss_nats / (row.loss_nats * group_factor(group_size_of(scheme)))
    text = f"model factor from a measured loss of {measured_loss_nats:.4g} nats with {scheme}"
    return ModelPrior(prior.published, factor, factors.half_width("anchored"), LossOrigin.ANCHORED, text)


def prior_loss(model: Model | str, scheme: Scheme, method: str = "") -> LossEstimate | Unknown:
    """Return the loss of a uniform scheme on a model, by the published prior."""
    return model_prior(model).loss(scheme, method)
