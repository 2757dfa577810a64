"""Thousands of cases predicted into one Parquet file, on this machine or on a ray cluster; killed, it goes on.

Setups are predicted in chunks, each written whole into a folder beside the result. Another run takes up what is there,
and the last step puts the chunks together.
"""

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign import __version__
from codesign.capacity.grid_file import Grid, Setup
from codesign.capacity.grid_predict import predict_setup
from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic
from codesign.profiler.store import locked, probe_writing

if TYPE_CHECKING:
    import pyarrow

CASES_PER_CHUNK = 2_000
AHEAD = 2  # chunks handed out per worker
HEAD_BYTES_MAX = 2**16
RAY = "ray://"
RETRIES = 3

Work = tuple[int, tuple[Setup, ...], tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A grid, where its result goes, and the chunks of it."""

    grid: Grid
    target: Path

    @property
    def folder(self) -> Path:
        """Return where chunks lie until all are there."""
        return self.target.with_name(self.target.name + ".parts")

    def part(self, number: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"{number:06d}.parquet"

    @property
    def chunks(self) -> list[Work]:
        """Return number, setups and workloads of every chunk."""
        workloads = self.grid.workloads
        size = max(1, CASES_PER_CHUNK // len(workloads))
        setups = tuple(self.grid.setups)
        return [(n, setups[i : i + size], workloads) for n, i in enumerate(range(0, len(setups), size))]


def run_sweep(sweep: Sweep, engine: str, workers: int, report: Callable[[int, int], None]) -> int:
    """Predict what is missing and write the result; return how many chunks were there already.

    InputError if the folder beside the result is of another grid, CapabilityError while another process works in it.
    """
    sweep.folder.mkdir(exist_ok=True)
    probe_writing(sweep.folder)
    with locked(sweep.folder):
        _check_head(sweep)
        chunks = sweep.chunks
        todo = [chunk for chunk in chunks if not _is_whole(sweep.part(chunk[0]))]
        done = len(chunks) - len(todo)
        report(done, len(chunks))
        results = _on_ray(engine, todo) if engine.startswith("ray") else _local(todo, workers)
        for count, (number, payload) in enumerate(results, 1):
            write_atomic(sweep.part(number), payload)
            report(done + count, len(chunks))
        _put_together(sweep, len(chunks))
    shutil.rmtree(sweep.folder)
    return done


def _check_head(sweep: Sweep) -> None:
    """Write what the folder is of, or refuse one of another grid or version."""
    head = {"grid": sweep.grid.digest, "codesign": __version__}
    path = sweep.folder / "sweep.json"
    if not path.exists():
        write_atomic(path, to_json(head))
        return
    found = parse_json(read_text(path, HEAD_BYTES_MAX, "sweep"), str(path))
    if found != head:
        raise InputError(
            f"{sweep.folder}: these chunks are of another grid or version; remove the folder to start anew."
        )


def _is_whole(path: Path) -> bool:
    """Return whether a chunk is there and can be read; a damaged one is predicted again."""
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowInvalid):
        return False
    return True


def predict_chunk(work: Work) -> tuple[int, bytes]:
    """Return the number of a chunk and its rows as a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number, setups, workloads = work
    tables = [_table(setup, workloads) for setup in setups]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.concat_tables(tables), sink)
    return number, sink.getvalue().to_pybytes()


def _table(setup: Setup, workloads: Sequence[tuple[int, int, int]]) -> "pyarrow.Table":
    import pyarrow

    columns: dict[str, Any] = {name: [value] * len(workloads) for name, value in asdict(setup).items()}
    return pyarrow.table(columns | predict_setup(setup, workloads))


# --- engines ---


def _local(todo: list[Work], workers: int) -> Iterator[tuple[int, bytes]]:
    """Yield chunks as processes of this machine finish them."""
    if workers == 1 or len(todo) <= 1:
        yield from map(predict_chunk, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_leave_signals_to_parent) as pool:
        waiting, running = list(reversed(todo)), set[Future[tuple[int, bytes]]]()
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD * workers:
                    running.add(pool.submit(predict_chunk, waiting.pop()))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_signals_to_parent() -> None:
    """Let an interrupt of the terminal reach the parent alone, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_ray(engine: str, todo: list[Work]) -> Iterator[tuple[int, bytes]]:
    """Yield chunks as a ray cluster finishes them; those of a lost machine are handed out again."""
    from codesign.quantize.cluster import load_ray

    ray = load_ray()
    address = engine.removeprefix(RAY) if engine.startswith(RAY) else "auto"
    ray.init(address=address, log_to_driver=False)
    try:
        yield from _ray_chunks(ray, todo)
    finally:
        ray.shutdown()


def _ray_chunks(ray: Any, todo: list[Work]) -> Iterator[tuple[int, bytes]]:
    remote = ray.remote(max_retries=RETRIES)(predict_chunk)
    waiting = list(reversed(todo))
    running: list[Any] = []
    ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < ahead:
            running.append(remote.remote(waiting.pop()))
        finished, running = ray.wait(running)
        yield from ray.get(finished)


def _put_together(sweep: Sweep, count: int) -> None:
    """Write one file of all chunks, in order, with where it comes from."""
    import pyarrow.parquet

    first = pyarrow.parquet.read_schema(sweep.part(0))
    about = {"codesign_version": __version__, "grid": sweep.grid.digest, "cases": str(sweep.grid.case_count)}
    schema = first.with_metadata(about)
    temporary = sweep.folder / "all.parquet"
    with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for number in range(count):
            writer.write_table(pyarrow.parquet.read_table(sweep.part(number)).cast(schema))
    temporary.replace(sweep.target)
