"""Coverage-guided fuzzing of everything that reads files which nobody trusts; `make fuzz FUZZ_SECONDS=60`.

    python scripts/fuzz.py                          all parsers, one after another
    python scripts/fuzz.py gguf --seconds 600       one of them
    python scripts/fuzz.py gguf --again FILE        what a find does, with its traceback

A find is any exception but InputError, an input that takes over 10 s, or one that takes over 2 GiB. Each is written to
build/fuzz/PARSER/finds and named; the inputs that reached new code are kept beside, and later runs go on from them.
"""

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HANG_S, MEMORY_MIB, INPUT_BYTES_MAX = 10, 2048, 16_384
DATA_BYTES = 2**22
FOUND = 1

sys.path.insert(0, str(ROOT))


def main() -> int:
    """Return 1 if there was a find."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parsers", nargs="*", choices=[*PARSERS, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="of each parser")
    parser.add_argument("--again", type=Path, metavar="FILE", help="read this input once instead")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.parsers or list(PARSERS)
    if given.again:
        _instrumented(names[0])[0](given.again.read_bytes())
        return 0
    if given.inside:
        fuzz(names[0], given.seconds)
    found = {name: fuzzed(name, given.seconds) for name in names}
    for name, paths in found.items():
        print(f"{name}: {'no finds' if not paths else 'FINDS: ' + ', '.join(map(str, paths))}")
    return FOUND if any(found.values()) else 0


def fuzzed(name: str, seconds: int) -> list[Path]:
    """Fuzz one parser in a process of its own, which a find ends; return the inputs that were found."""
    finds = ROOT / "build" / "fuzz" / name / "finds"
    before = set(finds.glob("*"))
    command = [sys.executable, __file__, name, "--inside", "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        done = subprocess.run(command, check=False, env={**os.environ, "TMPDIR": folder})
    found = sorted(set(finds.glob("*")) - before)
    if done.returncode and not found:
        raise SystemExit(f"{name}: the fuzzer ended with code {done.returncode} and without a find; see above.")
    return found


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one parser; never returns."""
    import atheris

    folder = ROOT / "build" / "fuzz" / name
    corpus, finds = folder / "corpus", folder / "finds"
    for path in (corpus, finds):
        path.mkdir(parents=True, exist_ok=True)
    read, seeds = _instrumented(name)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in _words(seeds)))
    options = {
        "max_total_time": seconds, "timeout": HANG_S, "rss_limit_mb": MEMORY_MIB, "max_len": INPUT_BYTES_MAX,
        "artifact_prefix": f"{finds}/", "dict": folder / "words", "print_final_stats": 1,
    }  # fmt: skip
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], read)
    atheris.Fuzz()


def _words(seeds: Iterable[bytes]) -> list[str]:
    """Return the words of the seeds, which the fuzzer then puts where chance alone would never write them."""
    found = {word.decode() for seed in seeds for word in re.findall(rb"[A-Za-z_][A-Za-z0-9_.-]{2,60}", seed)}
    return sorted(found)


def _instrumented(name: str) -> tuple[Callable[[bytes], None], list[bytes]]:
    """Return the reader and the seeds of a parser, the package imported so that the fuzzer sees its branches."""
    import atheris

    with atheris.instrument_imports(include=["codesign"]):
        reader, seeds = PARSERS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        return _clean(reader(folder)), list(seeds())


def _clean(read: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Return the reader with the errors caught that may come."""
    from codesign.errors import InputError

    def once(data: bytes) -> None:
        with suppress(InputError):
            read(data)

    return once


Reader = Callable[[Path], Callable[[bytes], object]]


def _gguf_reader(folder: Path) -> Callable[[bytes], object]:
    """Read a whole checkpoint: header, model, the scheme of each layer; the input is the header, zeros follow it."""
    from codesign.checkpoint.checkpoint import read_checkpoint

    path = folder / "x.gguf"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        os.truncate(path, len(data) + DATA_BYTES)
        return read_checkpoint(str(path))

    return read


def _gguf_seeds() -> Iterable[bytes]:
    from tests.crafted_checkpoints import good_gguf
    from tests.tiny_checkpoints import GGUF_KEYS, gguf_llama, write_gguf

    path = Path(tempfile.mkdtemp(prefix="fuzz-seeds-")) / "x.gguf"
    yield good_gguf(2)
    for architecture in ("llama", "qwen2", "gemma2", "phi3"):
        yield write_gguf(path, architecture, GGUF_KEYS, gguf_llama()).read_bytes().rstrip(b"\0")


def _safetensors_reader(folder: Path) -> Callable[[bytes], object]:
    """Read a file as it is, and once more with the length of its header put right."""
    from codesign.errors import InputError
    from codesign.model.safetensors_file import read_safetensors

    path = folder / "x.safetensors"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return read_safetensors(path)
        except InputError:
            end = max(8, data.rfind(b"}") + 1)
            path.write_bytes(struct.pack("<Q", end - 8) + data[8:])
            return read_safetensors(path)

    return read


def _safetensors_seeds() -> Iterable[bytes]:
    from tests.crafted_checkpoints import good_safetensors, safetensors

    yield good_safetensors()
    yield safetensors({})
    yield safetensors({"__metadata__": {"format": "pt"}})


def _index_reader(folder: Path) -> Callable[[bytes], object]:
    """Read an index beside two good shards."""
    from codesign.model.shards import read_shards
    from tests.tiny_checkpoints import tensor_file

    (folder / "a.safetensors").write_bytes(tensor_file({"x.weight": ("BF16", (2, 2))}))
    (folder / "b.safetensors").write_bytes(tensor_file({"y.weight": ("BF16", (2, 2)), "y.bias": ("BF16", (2,))}))
    index = folder / "model.safetensors.index.json"

    def read(data: bytes) -> object:
        index.write_bytes(data)
        return read_shards(index)

    return read


def _index_seeds() -> Iterable[bytes]:
    weight_map = {"x.weight": "a.safetensors", "y.weight": "b.safetensors", "y.bias": "b.safetensors"}
    yield json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}).encode()
    yield json.dumps({"weight_map": {"x.weight": "../a.safetensors"}}).encode()


def _config_reader(folder: Path) -> Callable[[bytes], object]:
    """Read a config.json with its quantization config, beside the weights of a tiny Llama."""
    from codesign.checkpoint.checkpoint import read_checkpoint
    from tests.tiny_checkpoints import gptq, llama, write_folder

    write_folder(folder, llama(gptq()))

    def read(data: bytes) -> object:
        (folder / "config.json").write_bytes(data)
        return read_checkpoint(str(folder))

    return read


def _config_seeds() -> Iterable[bytes]:
    from codesign.model.file import list_models, read_entry
    from tests.checkpoint_kinds import KINDS
    from tests.tiny_checkpoints import LLAMA

    for _, quantization, _ in KINDS.values():
        yield json.dumps({**LLAMA, "quantization_config": quantization}).encode()
    by_family: dict[str, Any] = {}
    for name in list_models():
        config = read_entry(name)["config"]
        by_family.setdefault(config["model_type"], config)
    for config in by_family.values():
        yield json.dumps(config).encode()


def _profile_reader(folder: Path) -> Callable[[bytes], object]:
    """Read a hardware profile."""
    from codesign.hardware.file import load_hardware

    path = folder / "x.yaml"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_hardware(path)

    return read


def _profile_seeds() -> Iterable[bytes]:
    from codesign.hardware.file import list_hardware, profile_folder

    for name in list_hardware()[::6]:
        yield (profile_folder() / f"{name}.yaml").read_bytes()
    yield b"a: {value: 1.5e3, source: 'x', list: [1, -2, .inf, ~]}\nb: |\n  text\n"


PARSERS: MappingProxyType[str, tuple[Reader, Callable[[], Iterable[bytes]]]] = MappingProxyType(
    {
        "gguf": (_gguf_reader, _gguf_seeds),
        "safetensors": (_safetensors_reader, _safetensors_seeds),
        "index": (_index_reader, _index_seeds),
        "config": (_config_reader, _config_seeds),
        "profile": (_profile_reader, _profile_seeds),
    }
)

if __name__ == "__main__":
    sys.exit(main())
