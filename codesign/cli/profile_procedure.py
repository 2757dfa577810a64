"""Options of `codesign profile` that say how cases are measured, and what becomes of a run that lies there."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from codesign.profiler.profile import Resume

F = TypeVar("F", bound=Callable[..., Any])
REPEAT_MAX = 100


def procedure_options(function: F) -> F:
    """Add --cache, --repeat, --energy, --force, --force-resume and --retry-suspect."""
    text = "Measure cases of the run again that were suspect for what else the machine did."
    function = click.option("--retry-suspect", is_flag=True, help=text)(function)
    text = "Resume although the conditions have changed."
    function = click.option("--force-resume", is_flag=True, help=text)(function)
    function = click.option("--force", is_flag=True, help="Delete the run that lies there.")(function)
    text = "Measure joules per call where a counter can be read, 5 s per case."
    function = click.option("--energy", is_flag=True, help=text)(function)
    text = "Fresh processes that run each case; how their medians spread is its error bar."
    repeat = click.IntRange(1, REPEAT_MAX)
    function = click.option("--repeat", type=repeat, default=1, show_default=True, metavar="COUNT", help=text)(function)
    text = "Where weights lie: read in turn from many copies; pushed out before each call; one copy over and over."
    states = click.Choice(["rotating", "cold", "hot"])
    return click.option("--cache", type=states, default="rotating", show_default=True, help=text)(function)


def resume_of(given: dict[str, Any]) -> "Resume":
    """Return what becomes of a run that lies in the folder."""
    from codesign.profiler.profile import Resume

    return Resume(given["force"], given["force_resume"], given["retry_suspect"])


def energy_warnings(energy: Any) -> list[str]:
    """Return why energy that was asked for is not there, once for each device."""
    missing = {device: one["why"] for device, one in (energy or {}).items() if isinstance(one, dict)}
    return [f"No energy is measured of {device}: {why}." for device, why in missing.items()]
