"""llama.cpp: its programs time themselves, so there is no kernel here to call; their results are imported."""

import os
import shutil
import subprocess
from pathlib import Path

from codesign.errors import InputError
from codesign.profiler.kernel import LibraryState

FOLDER = "CODESIGN_LLAMA_CPP"  # the environment variable with the folder of its programs, looked at before the PATH
PROGRAMS = ("llama-bench", "test-backend-ops")
PROMPT_TOKENS, OUTPUT_TOKENS, REPETITIONS = 256, 64, 5
_TIMEOUT_S = 10.0


def program(name: str) -> str | None:
    """Return the path of one of llama.cpp's programs, None if it is not here."""
    folder = os.environ.get(FOLDER)
    return (shutil.which(name, path=folder) if folder else None) or shutil.which(name)


def state() -> LibraryState:
    """Return which of the programs are here, and that their results come in by import."""
    found = [path for name in PROGRAMS if (path := program(name))]
    if not found:
        names = ", ".join(PROGRAMS)
        return LibraryState("llama.cpp", None, f"none of {names} is on the PATH or in ${FOLDER}; build llama.cpp")
    version = _version(found[0])
    if version is None:
        return LibraryState("llama.cpp", None, f"{found[0]} --version does not run; build llama.cpp for this machine")
    return LibraryState("llama.cpp", version, "it times itself: import the JSON of `llama-bench -o json`, or a model")


def bench_json(model: Path, threads: tuple[int, ...]) -> str:
    """Return what llama-bench writes of a GGUF file with these thread counts: a prompt and a generation each."""
    path = program(PROGRAMS[0])
    if path is None:
        raise InputError(f"{PROGRAMS[0]} is not on the PATH or in ${FOLDER}. Build llama.cpp, or import its results.")
    numbers = (("-p", PROMPT_TOKENS), ("-n", OUTPUT_TOKENS), ("-r", REPETITIONS), ("-t", ",".join(map(str, threads))))
    options = [str(word) for pair in numbers for word in pair]
    done = subprocess.run(
        [path, "-m", os.fspath(model), *options, "-o", "json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise InputError(f"{path} -m {model} ended with {done.returncode}: {told[0]}. Try the model with llama-cli.")
    return done.stdout


def _version(path: str) -> str | None:
    """Return the version that a program states, None if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout + done.stderr).splitlines()
    stated = next((line for line in lines if line.startswith("version:")), None)
    return stated.removeprefix("version:").strip() if stated else "unknown" if done.returncode == 0 else None
