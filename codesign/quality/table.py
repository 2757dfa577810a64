"""The quality table: what each scheme loses in each fused group, and each KV format once. A missing cell is unknown.

The file is strict JSON, `format_version` 1, with exactly these keys:

    model, model_digest   name, and the digest of the shapes that the table belongs to (`codesign model show --json`)
    text, metric          what was measured on which text, or the words of the prior
    calibration           scalar on all cells: one end-to-end loss over their sum
    cells                 list of block_index (null outside the blocks), group (`qkv`, `o`, `gate_up`, `down`,
                          `experts`, `head` ...), scheme, loss_nats, low_nats, high_nats (80 %), origin (`measured`,
                          `anchored prior`, `published prior`, `baseline`), method, evidence
    kv                    list of kv (format), loss_nats, low_nats, high_nats, origin, method, evidence

16-bit schemes and KV formats lose nothing and need no cell. The head's cell includes the input embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from codesign.codec import from_plain, to_plain
from codesign.cost.arrays import FloatArray
from codesign.cost.prediction import Prediction
from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic
from codesign.model.groups import GroupKey, fused_groups
from codesign.model.layers import Model
from codesign.quality.estimate import NO_LOSS, LossEstimate, LossOrigin, Unknown
from codesign.quality.kv import kv_loss
from codesign.quality.prior import ModelPrior, model_prior
from codesign.quality.shape import head_share, layer_shape
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KvFormat, parse_kv
from codesign.schemes.scheme import Scheme

_Key = TypeVar("_Key")
FORMAT_VERSION = 1
_BYTES_MAX = 64 * 2**20
_LOSS_NATS_MAX = 50.0
_CALIBRATION_MAX = 100.0
_HEAD: GroupKey = (None, "head")
_PRIOR_TEXT, _PRIOR_METRIC = "WikiText-2 and relatives", "ln of the perplexity ratio, published prior"


@dataclass(frozen=True, slots=True)
class QualityTable:
    """Losses by (group key, scheme name) and by KV format name, before `calibration`; reasons tell what is unknown."""

    model: str
    model_digest: str
    text: str
    metric: str
    cells: Mapping[tuple[GroupKey, str], LossEstimate]
    kv: Mapping[str, LossEstimate]
    calibration: float = 1.0
    unknown: Mapping[str, str] | None = None

    def estimate(self, key: GroupKey, scheme_name: str) -> LossEstimate | None:
        """Return the calibrated loss of a group under a scheme, None if it is unknown."""
        if not parse_scheme(scheme_name).quantized:
            return NO_LOSS
        cell = self.cells.get((key, scheme_name))
        return None if cell is None else cell.scaled(self.calibration)

    def group_loss(self, key: GroupKey, scheme_name: str) -> Prediction | None:
        """Return the same as a prediction."""
        found = self.estimate(key, scheme_name)
        return None if found is None else found.prediction

    def group_losses(self, keys: Sequence[GroupKey], scheme_names: Sequence[str]) -> FloatArray:
        """Return the losses [groups, schemes] in nats; NaN where unknown."""
        losses = np.full((len(keys), len(scheme_names)), np.nan)
        for column, name in enumerate(scheme_names):
            if not parse_scheme(name).quantized:
                losses[:, column] = 0.0
                continue
            for row, key in enumerate(keys):
                cell = self.cells.get((key, name))
                if cell is not None:
                    losses[row, column] = cell.loss_nats * self.calibration
        return losses

    def kv_loss(self, name: str) -> Prediction | None:
        """Return the loss of a KV format, None if it is unknown."""
        found = self.kv.get(name) if parse_kv(name).quantized else NO_LOSS
        return None if found is None else found.prediction

    def kv_losses(self, names: Sequence[str]) -> FloatArray:
        """Return the losses of KV formats in nats; NaN where unknown."""
        found = [self.kv_loss(name) for name in names]
        return np.array([np.nan if loss is None else loss.value for loss in found])


def table_from_prior(
    model: Model,
    schemes: Sequence[Scheme],
    kv_formats: Sequence[KvFormat],
    method: str = "",
    prior: ModelPrior | None = None,
) -> QualityTable:
    """Return the losses that the published prior predicts; pass an anchored `prior` to narrow them.

    A plan that uses one scheme everywhere but in the head loses exactly what the prior says of that scheme.
    """
    known_of_model = prior or model_prior(model)
    shares = {**layer_shape(model), _HEAD: head_share(model)}
    cells: dict[tuple[GroupKey, str], LossEstimate] = {}
    unknown: dict[str, str] = {}
    for scheme in schemes:
        whole = known_of_model.loss(scheme, method)
        if isinstance(whole, Unknown):
            unknown[scheme.name] = whole.reason
        elif scheme.quantized:
            cells.update({(key, scheme.name): whole.scaled(share) for key, share in shares.items()})
    kv = {}
    for format_ in kv_formats:
        loss = kv_loss(model, format_)
        if isinstance(loss, Unknown):
            unknown[f"KV {format_.name}"] = loss.reason
        else:
            kv[format_.name] = loss
    return QualityTable(model.name, model.digest, _PRIOR_TEXT, _PRIOR_METRIC, cells, kv, unknown=unknown)


@dataclass(frozen=True, slots=True)
class _CellRow:
    block_index: int | None
    group: str
    scheme: str
    loss_nats: float
    low_nats: float
    high_nats: float
    origin: LossOrigin
    method: str
    evidence: str


@dataclass(frozen=True, slots=True)
class _KvRow:
    kv: str
    loss_nats: float
    low_nats: float
    high_nats: float
    origin: LossOrigin
    method: str
    evidence: str


@dataclass(frozen=True, slots=True)
class _File:
    format_version: int
    model: str
    model_digest: str
    text: str
    metric: str
    calibration: float
    cells: tuple[_CellRow, ...]
    kv: tuple[_KvRow, ...]


def write_quality(table: QualityTable, path: Path) -> None:
    """Write the table as JSON, whole or not at all."""
    cells = tuple(
        _CellRow(key[0], key[1], scheme, c.loss_nats, c.low_nats, c.high_nats, c.origin, c.method, c.evidence)
        for (key, scheme), c in table.cells.items()
    )
    kv = tuple(
        _KvRow(name, c.loss_nats, c.low_nats, c.high_nats, c.origin, c.method, c.evidence)
        for name, c in table.kv.items()
    )
    plain = _File(
        FORMAT_VERSION, table.model, table.model_digest, table.text, table.metric, table.calibration, cells, kv
    )  # fmt: skip
    write_atomic(path, to_json(to_plain(plain)))


def read_quality(path: Path, model: Model) -> QualityTable:
    """Return the table in a file that was made for this model; InputError says what is wrong with it."""
    data = parse_json(read_text(path, _BYTES_MAX, "quality table"), str(path))
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{path}: this is not a quality table of format_version {FORMAT_VERSION}; format_version is {version!r}."
        )
    file = from_plain(_File, data, str(path))
    _check_head(file, model, path)
    groups = {group.key for group in fused_groups(model)}
    cells: dict[tuple[GroupKey, str], LossEstimate] = {}
    for index, row in enumerate(file.cells):
        where = f"{path}: cells[{index}]"
        key = (row.block_index, row.group)
        if key not in groups:
            raise InputError(f"{where}: {model.name} has no group {row.group!r} in block {row.block_index}.")
        _add(cells, (key, parse_scheme(row.scheme).name), row, where)
    kv: dict[str, LossEstimate] = {}
    for index, kv_row in enumerate(file.kv):
        _add(kv, parse_kv(kv_row.kv).name, kv_row, f"{path}: kv[{index}]")
    return QualityTable(file.model, file.model_digest, file.text, file.metric, cells, kv, file.calibration)


def _check_head(file: _File, model: Model, path: Path) -> None:
    if file.model_digest != model.digest:
        raise InputError(
            f'{path}: this table was made for "{file.model}" with digest {file.model_digest[:16]}, '
            f'not for "{model.name}" with digest {model.digest[:16]}. Measure it again for this model.'
        )
    if not 0 < file.calibration <= _CALIBRATION_MAX:
        raise InputError(f"{path}: calibration must be above 0 and at most {_CALIBRATION_MAX:g}.")


def _add(cells: dict[_Key, LossEstimate], key: _Key, row: _CellRow | _KvRow, where: str) -> None:
    if key in cells:
        raise InputError(f"{where}: this cell appears twice; remove one.")
    if not 0 <= row.low_nats <= row.loss_nats <= row.high_nats <= _LOSS_NATS_MAX:
        raise InputError(
            f"{where}: losses must satisfy 0 <= low_nats <= loss_nats <= high_nats <= {_LOSS_NATS_MAX:g}, "
            f"not {row.low_nats}, {row.loss_nats}, {row.high_nats}."
        )
    cells[key] = LossEstimate(row.loss_nats, row.low_nats, row.high_nats, row.origin, row.method, row.evidence)
