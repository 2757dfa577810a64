"""llama.cpp: its programs time themselves, so there is no kernel here to call; their results are imported."""

import shutil
import subprocess

from codesign.profiler.kernel import LibraryState

PROGRAMS = ("llama-bench", "test-backend-ops")
_TIMEOUT_S = 10.0


def state() -> LibraryState:
    """Return which of the programs are on the PATH, and that their results come in by import."""
    found = [path for name in PROGRAMS if (path := shutil.which(name))]
    if not found:
        return LibraryState("llama.cpp", None, f"none of {', '.join(PROGRAMS)} is on the PATH; build llama.cpp")
    version = _version(found[0])
    if version is None:
        return LibraryState("llama.cpp", None, f"{found[0]} --version does not run; build llama.cpp for this machine")
    return LibraryState("llama.cpp", version, "it times itself: import the JSON of `llama-bench -o json`")


def _version(program: str) -> str | None:
    """Return the version that a program states, None if it does not run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout + done.stderr).splitlines()
    stated = next((line for line in lines if line.startswith("version:")), None)
    return stated.removeprefix("version:").strip() if stated else "unknown" if done.returncode == 0 else None
