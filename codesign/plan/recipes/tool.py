"""What every recipe is made from, and what every tool states about itself."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from codesign.cost.as_is import AS_IS
from codesign.hardware.hardware import Hardware
from codesign.model.layers import Model
from codesign.plan.file import Plan
from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import by_scheme
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.kv import KvFormat
from codesign.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Export:
    """A plan that the tool can express: its modules in order, the embedding last; `source` is where weights lie.

    `remarks` are sentences about what was promoted, for the beginning of the recipe.
    """

    plan: Plan
    model: Model
    modules: tuple[PlannedModule, ...]
    kv: KvFormat
    hardware: Hardware
    source: str
    remarks: tuple[str, ...] = ()

    @property
    def sixteen_bit(self) -> Scheme:
        """Return what the machine keeps unquantized weights in."""
        return baseline_scheme(self.hardware)

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """Return the quantized schemes by name, the one of most modules first."""
        return {name: members[0].scheme for name, members in by_scheme(self.modules).items()}

    @property
    def stored(self) -> bool:
        """Return whether the weights lie at `source` as the plan says already."""
        return self.plan.objective == AS_IS

    @property
    def context_tokens(self) -> int:
        """Return the tokens of one sequence at its end."""
        return self.plan.workload.final_context_tokens

    @property
    def output(self) -> str:
        """Return the name of the folder or file that the recipe makes."""
        names = list(self.schemes) or [self.sixteen_bit.name]
        return f"{self.name}-{names[0] if len(names) == 1 else 'mixed'}".lower()

    @property
    def name(self) -> str:
        """Return the name of the model as a part of file names that no shell takes for anything else."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.plan.model).strip("-.") or "model"


Problem = Callable[[Scheme, str], str | None]


def no_machine_problem(_scheme: Scheme, _hardware: Hardware) -> str | None:
    """Return None: the tool makes a scheme on all machines that have kernels for it."""
    return None


def no_whole_problem(_modules: tuple[PlannedModule, ...]) -> str | None:
    """Return None: any schemes may stand side by side."""
    return None


def no_deployment_problem(_plan: Plan) -> str | None:
    """Return None: the tool does not serve, or serves any."""
    return None


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that makes or serves a plan.

    `libraries` run what it makes, the usual one first; none where this project has no kernel table for it.
    `problem` says why it cannot express a scheme (made with a method), `machine_problem` why not on this machine,
    `whole_problem` why not these modules together, `deployment_problem` why it cannot serve on these devices. One that
    serves also takes a plan of 16 bits. One that `fuses` merges the layers of a group into one multiplication, so that
    they must have one scheme.
    `kv_names` are its own words for KV formats; where it has none, any will do that the library runs.
    """

    name: str
    title: str
    version: str
    source: str
    libraries: tuple[str, ...]
    write: Callable[[Export], str]
    problem: Problem
    machine_problem: Callable[[Scheme, Hardware], str | None] = no_machine_problem
    whole_problem: Callable[[tuple[PlannedModule, ...]], str | None] = no_whole_problem
    deployment_problem: Callable[[Plan], str | None] = no_deployment_problem
    serves: bool = False
    kv_names: Mapping[str, str] = field(default_factory=dict)
    fuses: bool = True

    @property
    def written_for(self) -> str:
        """Return tool and version."""
        return f"{self.title} {self.version}"


def any_scheme(_scheme: Scheme, _method: str) -> str | None:
    """Return None: a server takes whatever its library has kernels for."""
    return None


def header(export: Export, tool_text: str) -> str:
    """Return the comment that begins a recipe."""
    return "".join(comment(line) for line in remarks(export, tool_text))


def comment(text: str) -> str:
    """Return a line that is a comment to its end, whatever the plan's file holds."""
    return f"# {''.join(c if c.isprintable() else ' ' for c in text)}\n"


def remarks(export: Export, tool_text: str) -> list[str]:
    """Return what a recipe is, what it was planned for, for which tool it is written and what was promoted."""
    plan = export.plan
    gpus = f"{plan.gpu_count} x " if plan.gpu_count > 1 else ""
    work = plan.workload
    return [
        f"{plan.model} for {gpus}{plan.hardware}, planned by codesign {plan.codesign_version}",
        f"batch {work.batch}, prompt {work.prompt_tokens}, output {work.output_tokens} tokens; KV cache {export.kv}",
        f"Written for {tool_text}",
        *export.remarks,
    ]
