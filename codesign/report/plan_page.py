"""The page of a plan: verdict, pictures, tables, the plan itself as JSON. Made from the plan alone."""

from pathlib import Path

from codesign.plan.file import Plan, plan_json
from codesign.plan.present import (
    advice_lines,
    break_even_rows,
    gain_rows,
    group_rows,
    headline,
    pareto_rows,
    refused_rows,
    sheet_lines,
    total_rows,
)
from codesign.report.charts import (
    bits_by_layer,
    break_even_bars,
    gain_waterfall,
    pareto_chart,
    time_parts,
)
from codesign.report.page import figure_html, write_page
from codesign.units import GIBI, MILLI

AXES: dict[str, tuple[str, float]] = {
    "tpot": ("time per output token, ms", 1 / MILLI),
    "ttft": ("time to first token, ms", 1 / MILLI),
    "throughput": ("time of a request, s", 1.0),
    "cost": ("time of a request, s", 1.0),
    "memory": ("memory, GiB", 1 / GIBI),
    "quality": ("loss, nats", 1.0),
    "energy": ("energy per token, J", 1.0),
}


def write_plan_page(plan: Plan, path: Path) -> None:
    """Write the page of a plan as one offline file."""
    figures = {
        "times": time_parts(plan),
        "decode": gain_waterfall(plan.decode_gain_steps, "decode", plan.baseline_scheme),
        "prefill": gain_waterfall(plan.prefill_gain_steps, "prefill", plan.baseline_scheme),
        "bits": bits_by_layer(plan.groups),
        "everywhere": break_even_bars(plan),
    }
    if plan.pareto is not None:
        figures["pareto"] = pareto_chart(plan.pareto, AXES)
    tables = [
        ("Fused groups", group_rows(plan, every_group=False)),
        ("Totals, with 80 % intervals", total_rows(plan)),
        ("Where the ideal gain goes", gain_rows(plan)),
        ("Every scheme used everywhere", break_even_rows(plan)),
        *([("Plans of which none is better in both", pareto_rows(plan))] if plan.pareto is not None else []),
        ("Refused", refused_rows(plan)),
        ("Every fused group", group_rows(plan, every_group=True)),
    ]
    write_page(
        "plan.html",
        path,
        plan=plan,
        title=headline(plan),
        figures=[figure_html(figure, name) for name, figure in figures.items()],
        tables=tables,
        advice=advice_lines(plan),
        sheet_lines=sheet_lines(plan),
        raw=plan_json(plan),
    )
