"""Fit what serving programs take beside the kernels (codesign/capacity/replica.py), and say how well that works.

Every measured run is simulated: a client that keeps requests in flight, ten for each of them. Steps come from the cost
model. Left out means: constants from the runs of other models and prompt lengths.

    python scripts/fit_host_times.py
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from measured_rows import reference_folder
from scipy.optimize import nnls

from codesign.capacity.replica import Limits, Replica, make_replica
from codesign.capacity.requests import Requests
from codesign.capacity.server import HostTimes
from codesign.capacity.simulate import simulate_closed
from codesign.cost.fit import split_library
from codesign.cost.measured import read_measured_table
from codesign.cost.table_file import server_row

REQUESTS_PER_CLIENT = 10
REQUEST_S, STEP_TOKENS = (0.0, 0.001, 0.002, 0.004), (4096, 8192)
NOTHING = HostTimes()


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fitted of a program: its times, the tokens of a step in these runs, whether it decides a step ahead.

    With `crowded` the server decodes one request fewer than are in flight, which is looked at, not fitted.
    """

    host: HostTimes
    step_tokens: int
    overlap: bool
    crowded: bool = False


PLAIN = Settings(NOTHING, 8192, False)
CHOICES = tuple(
    Settings(HostTimes(request_s), tokens, overlap)
    for request_s in REQUEST_S for tokens in STEP_TOKENS for overlap in (False, True)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run and the server to simulate it with."""

    row: Mapping[str, Any]
    replica: Replica

    def simulated(self, settings: Settings) -> tuple[float, float]:
        """Return the mean seconds to the first token and per further token."""
        in_flight = int(self.row["concurrency"])
        count = in_flight * REQUESTS_PER_CLIENT
        lengths = (np.full(count, int(self.row[name])) for name in ("prompt_tokens", "output_tokens"))
        server = replace(
            self.replica.server, host=settings.host, step_tokens=settings.step_tokens, overlap=settings.overlap
        )
        if settings.crowded:
            server = replace(server, sequences_max=in_flight - 1)
        served = simulate_closed(Requests(np.zeros(count), *lengths), self.replica.table, server, in_flight)
        return float(served.ttft_s.mean()), float(served.tpot_s.mean())


def runs_by_library() -> dict[str, list[Run]]:
    """Return the runs that fit into memory."""
    frame = read_measured_table(reference_folder() / "measured" / "serving_e2e_h100.csv").frame
    found: dict[str, list[Run]] = {}
    for row in frame.to_dict("records"):
        where, assignment = server_row(row)
        context = int(row["prompt_tokens"] + row["output_tokens"])
        replica = make_replica(where, assignment, context, Limits(sequences_max=max(256, int(row["concurrency"]))))
        if replica is not None:
            found.setdefault(split_library(str(row["library"]))[0], []).append(Run(row, replica))
    return found


@dataclass(frozen=True, slots=True)
class Library:
    """The runs of a program, and what each choice of settings makes of them: [choices, runs, first and further]."""

    runs: list[Run]
    simulated: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Return a column of the measured runs."""
        return np.array([run.row[name] for run in self.runs])

    def fit(self, chosen: np.ndarray) -> Settings:
        """Return the settings whose first tokens fit best, with the step times that are left over."""
        ttft_s = self.column("measured_ttft_s")[chosen]
        misses = [np.mean(np.abs(np.log(found[chosen, 0] / ttft_s))) for found in self.simulated]
        best = int(np.argmin(misses))
        tpot_s, in_flight = self.column("measured_tpot_s")[chosen], self.column("concurrency")[chosen]
        columns = np.stack([np.ones_like(tpot_s), in_flight], axis=1) / tpot_s[:, None]
        (step_s, sequence_s), _ = nnls(columns, 1 - self.simulated[best, chosen, 1] / tpot_s)
        host = replace(CHOICES[best].host, step_s=float(step_s), sequence_s=float(sequence_s))
        return replace(CHOICES[best], host=host)

    def left_out(self) -> np.ndarray:
        """Return the simulated times of each run with the settings of the runs of other models and prompts."""
        kinds = np.array([f"{run.row['model']} {run.row['prompt_tokens']}" for run in self.runs])
        found = np.zeros((len(self.runs), 2))
        for kind in sorted(set(kinds)):
            settings = self.fit(np.flatnonzero(kinds != kind))
            for i in np.flatnonzero(kinds == kind):
                found[i] = self.runs[i].simulated(settings)
        return found


def errors(runs: list[Run], found: Any) -> pd.DataFrame:
    """Return the relative errors of first and further tokens."""
    measured = [(run.row["measured_ttft_s"], run.row["measured_tpot_s"]) for run in runs]
    return pd.DataFrame(np.array(found) / np.array(measured) - 1, columns=["ttft", "tpot"])


def main() -> None:
    """Print settings and errors of every library."""
    everything = []
    for name, runs in runs_by_library().items():
        simulated = np.array([[run.simulated(settings) for run in runs] for settings in CHOICES])
        library = Library(runs, simulated)
        unseen = errors(runs, library.left_out())
        everything.append(unseen)
        print(f"{name}: {library.fit(np.arange(len(runs)))}", flush=True)
        for title, part in (
            ("nothing fitted", errors(runs, [run.simulated(PLAIN) for run in runs])),
            ("left out", unseen),
        ):
            print(f"  {title}: {summary(part)} ({len(part)} runs)", flush=True)
        print_crowded(library)
    print(f"all, left out: {summary(pd.concat(everything))}")


def print_crowded(library: Library) -> None:
    """Print by model and requests in flight how first tokens fit if the server decodes one request fewer."""
    settings = library.fit(np.arange(len(library.runs)))
    frame = pd.DataFrame({"model": library.column("model"), "in flight": library.column("concurrency").astype(int)})
    for name, crowded in (("as many", False), ("one fewer", True)):
        found = [run.simulated(replace(settings, crowded=crowded)) for run in library.runs]
        frame[name] = errors(library.runs, found)["ttft"].abs()
    print(frame.groupby(["model", "in flight"]).mean().map("{:.0%}".format).unstack().to_string(), flush=True)


def summary(part: pd.DataFrame) -> str:
    """Return mean and median errors in words."""
    return ", ".join(
        f"{name.upper()} mean {part[name].abs().mean():.1%} median {part[name].abs().median():.1%}"
        for name in ("tpot", "ttft")
    )


if __name__ == "__main__":
    sys.exit(main())
