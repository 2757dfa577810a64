"""The course of `codesign quantize`: a line for each block, then what it came to."""

import time
from typing import TYPE_CHECKING

import click

from codesign.cli.output import plain, print_line
from codesign.units import BITS_PER_BYTE, GIGA, MEGA, format_percent, format_seconds, significant

if TYPE_CHECKING:
    from codesign.model.layers import Model
    from codesign.quantize.export import ExportReport
    from codesign.quantize.layer_report import LayerReport, PartReport
    from codesign.quantize.result import ResultFolder


class Course:
    """Prints parts as they are made, with the time that is left."""

    def __init__(self, model: "Model", results: "ResultFolder") -> None:
        self._begun_s = time.perf_counter()
        self._parts: list[PartReport] = []
        self._count = len(model.blocks)
        self._left = sum(not results.has(block.index) for block in model.blocks)
        if self._left < self._count:
            print_line(f"{self._count - self._left} of {self._count} blocks are finished from before.")

    def add(self, part: "PartReport") -> None:
        """Print what a part came to."""
        self._parts.append(part)
        elapsed_s = time.perf_counter() - self._begun_s
        if part.block_index is not None:
            self._left -= 1
        blocks = sum(part.block_index is not None for part in self._parts)
        rest = f", about {format_seconds(elapsed_s / blocks * self._left)} left" if blocks and self._left else ""
        if part.layers:
            print_line(f"{part.name}: {_error_text(part)}{format_seconds(elapsed_s)}{rest}")
        for layer in part.layers:
            for line in _dead_lines(layer):
                click.echo(f"Warning: {plain(line)}", err=True)

    def summarize(self) -> None:
        """Print bits per weight, errors and times of this run."""
        layers = [layer for part in self._parts for layer in part.layers]
        if not layers:
            return
        weights = sum(layer.weight_count for layer in layers)
        bits = BITS_PER_BYTE * sum(layer.stored_bytes for layer in layers) / weights
        seconds = sum(layer.round_s for layer in layers)
        speed = sum(layer.source_bytes for layer in layers) / seconds / GIGA
        print_line(
            f"{len(layers)} layers, {significant(weights / MEGA)} million weights in {significant(bits, 4)} bits each."
        )
        errors = _mean_errors(layers)
        if errors is not None:
            ours, nearest = errors
            print_line(f"Mean output error {format_percent(ours)}; rounding to nearest {format_percent(nearest)}.")
        print_line(
            f"{format_seconds(time.perf_counter() - self._begun_s)} in all, {format_seconds(seconds)} of it rounding "
            f"({significant(speed)} GB/s of weights)."
        )


def print_export(report: "ExportReport") -> None:
    """Print what was written and where."""
    for warning in report.warnings:
        click.echo(f"Warning: {plain(warning)}", err=True)
    print_line(f"Wrote {report.path} ({report.format}, {significant(report.file_bytes / MEGA)} MB).")


def _error_text(part: "PartReport") -> str:
    ours, nearest = part.error_fraction, part.nearest_error_fraction
    if ours is None or nearest is None:
        return ""
    return f"error {format_percent(ours)} (to nearest {format_percent(nearest)}); "


def _mean_errors(layers: "list[LayerReport]") -> tuple[float, float] | None:
    known = [
        (layer.error_fraction, layer.nearest_error_fraction, layer.weight_count)
        for layer in layers
        if layer.error_fraction is not None and layer.nearest_error_fraction is not None
    ]
    total = sum(weight for _, _, weight in known)
    if not total:
        return None
    return sum(e * w for e, _, w in known) / total, sum(n * w for _, n, w in known) / total


def _dead_lines(layer: "LayerReport") -> list[str]:
    """Return sentences about inputs and outputs whose weights are all zero."""
    found = []
    for what, places in (("outputs", layer.dead.rows), ("inputs", layer.dead.columns)):
        if places:
            named = ", ".join(str(place) for place in places[:5]) + (" ..." if len(places) > 5 else "")
            found.append(f"{layer.name}: the weights of {len(places)} {what} are all zero ({named}).")
    return found
