"""Every scheme of one machine side by side."""

from dataclasses import dataclass, replace

from codesign.checkpoint.stored import Checkpoint
from codesign.cost.advice import deployment_advice, uniform_kv_formats, uniform_schemes
from codesign.cost.advice_text import Advice
from codesign.cost.as_is import AS_IS, as_is_assignment
from codesign.cost.deployment import Deployment, deploy, uniform_assignment
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware
from codesign.model.layers import Model
from codesign.schemes.capability import baseline_scheme, candidate_schemes
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting


@dataclass(frozen=True, slots=True)
class SchemeResult:
    """One scheme on one machine: a prediction with what its reader should know, or the reason why there is none."""

    scheme: str
    prediction: InferencePrediction | None
    decode_gain: float | None
    prefill_gain: float | None
    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineComparison:
    """All schemes of one machine; gains are against its own 16-bit baseline."""

    hardware: str
    library: str
    baseline_scheme: str
    results: tuple[SchemeResult, ...]
    advice: tuple[Advice, ...] = ()


def compare_machine(
    hardware: Hardware, model: Model, setting: Setting, schemes: tuple[str, ...], checkpoint: Checkpoint | None = None
) -> MachineComparison:
    """Predict the named schemes, or all candidates of the machine's library, on one machine; threads are a CPU's.

    The name `as-is` stands for the schemes of the checkpoint.
    """
    if hardware.kind != "cpu":
        setting = replace(setting, thread_count=None)
    library = deploy(hardware, model, replace(setting, batch=1)).target.library
    baseline = baseline_scheme(hardware).name
    names = schemes or tuple(scheme.name for scheme in candidate_schemes(hardware, library))
    try:
        where = deploy(hardware, model, setting)
        reference = _predict(baseline, where, "")
    except CapabilityError as error:
        results = tuple(SchemeResult(name, None, None, None, str(error)) for name in names)
        return MachineComparison(hardware.name, library, baseline, results)
    results = tuple(_result(name, where, setting.kv, reference, checkpoint) for name in names)
    sixteen = uniform_assignment(where, parse_scheme(baseline))
    kv_formats = uniform_kv_formats(where, sixteen)
    if setting.kv in kv_formats:
        kv_formats = {setting.kv: kv_formats[setting.kv]}
    advice = deployment_advice(
        where, sixteen, uniform_schemes(where, tuple(name for name in names if name != AS_IS)), kv_formats
    )
    return MachineComparison(hardware.name, library, baseline, results, advice)


def _predict(name: str, where: Deployment, kv: str) -> InferencePrediction:
    return predict_inference(where, uniform_assignment(where, parse_scheme(name), kv))


def _result(
    name: str, where: Deployment, kv: str, reference: InferencePrediction, checkpoint: Checkpoint | None
) -> SchemeResult:
    warnings: tuple[str, ...] = ()
    try:
        if name == AS_IS and checkpoint is not None:
            found = as_is_assignment(where, checkpoint, kv)
            prediction, warnings = predict_inference(where, found.assignment), found.warnings
        else:
            prediction = _predict(name, where, kv)
    except CapabilityError as error:
        return SchemeResult(name, None, None, None, str(error))
    decode = reference.tpot_s.value / prediction.tpot_s.value
    prefill = reference.ttft_s.value / prediction.ttft_s.value
    return SchemeResult(name, prediction, decode, prefill, "", warnings)
