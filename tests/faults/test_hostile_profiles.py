"""Forty hostile hardware profiles: each is refused by one sentence with file, line and key (checks A41 to A43)."""

import subprocess
import sys
from pathlib import Path

import pytest

from codesign.errors import InputError
from codesign.hardware.file import copy_profile, load_hardware

GOOD = copy_profile("a100", "mine")
FACT = 'source: "my test", kind: measured, confidence: high}'


def _fact(value: str) -> str:
    return f"{{value: {value}, {FACT}"


def _with(key: str, replacement: str) -> str:
    """Return the good profile with the first line of this key replaced."""
    lines = GOOD.splitlines()
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith(f"{key}:"))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at] = indent + replacement
    return "\n".join(lines) + "\n"


def _bandwidth(value: str) -> str:
    return _with("bandwidth_gb_per_s", f"bandwidth_gb_per_s: {_fact(value)}")


_ALIAS_BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGE_BOMB = "a0: &a0 {k: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join(['*a' + str(i - 1)] * 10)}]}}\n" for i in range(1, 12)
)
_MEGABYTES_2 = "# " + "x" * 2 * 2**20
_RANGE = "out of range; a number from 0.01 to 1e\\+06 is allowed"

HOSTILE: dict[str, tuple[str | bytes, str]] = {
    # A42: bombs and things that execute
    "alias bomb": (_ALIAS_BOMB, r":1: the anchor &a is not allowed"),
    "merge bomb": (_MERGE_BOMB, r":1: the anchor &a0 is not allowed"),
    "merge key": ("name: x\n<<: {a: 1}\n", r":2: the merge key << is not allowed"),
    "alias without anchor": ("name: *x\n", r":1: the alias \*x is not allowed"),
    "self reference": ("name: &self [*self]\n", r":1: the anchor &self is not allowed"),
    "200k brackets": ("name: " + "[" * 200_000, r":1: nested deeper than 32 levels"),
    "200k braces": ("name: " + "{a: " * 50_000, r":1: nested deeper than 32 levels"),
    "200k levels of indent": ("".join(" " * i + "a:\n" for i in range(400)), r":33: nested deeper than 32 levels"),
    "python tag": ("name: !!python/object/apply:os.system [false]\n", r":1: the tag .*python.* is not allowed"),
    "long tag": ("name: !" + "x" * 100_000 + " y\n", r":1: the tag !x+\.\.\. is not allowed"),
    "long anchor": ("name: &" + "x" * 100_000 + " y\n", r":1: the anchor &x+\.\.\. is not allowed"),
    "long undefined handle": ("name: !" + "x" * 100_000 + "!y z\n", r":1: not valid YAML: found undefined tag handle"),
    "long key": ("x" * 100_000 + ": 1\n", r"not valid YAML"),
    "local tag": ("name: !secret x\n", r":1: the tag !secret is not allowed"),
    "plain tag": ("name: !!str 1\n", r":1: the tag .* is not allowed"),
    "2 MiB": (_MEGABYTES_2, r"bytes is too large for a hardware profile; the limit is 262144 bytes"),
    "60k values": ("name: [" + "a," * 60_000 + "]", r":1: more than 10000 values"),
    "two documents": (GOOD + "---\n" + GOOD, r": a second YAML document starts here"),
    "directive": ("%TAG ! tag:x,2000:\n---\nname: x\n", r":1: a % directive"),
    "huge version": ("%YAML " + "9" * 5000 + ".1\n---\nname: x\n", r"not valid YAML"),
    # forms
    "tab": ("units:\n\tname: SM\n", r":2: not valid YAML: found character '\\t'"),
    "utf-16": (GOOD.encode("utf-16"), r"must be UTF-8 text"),
    "utf-16 without mark": (GOOD.encode("utf-16-le"), r"not valid YAML"),
    "latin-1": ("name: caf\xe9\n".encode("latin-1"), r"must be UTF-8 text"),
    "nul": (b"name: a\0b\n", r"not valid YAML"),
    "empty": ("", r"the file is empty"),
    "only comments": ("# nothing\n", r"the file is empty"),
    "null at top": ("~\n", r"the file is empty"),
    "list at top": ("- a\n- b\n", r":1: a list at the top"),
    "word at top": ("hello\n", r":1: hello at the top"),
    "unclosed": ("name: {a: 1\n", r"not valid YAML"),
    "mapping as key": ("? {a: 1}\n: 2\n", r":1: a list or mapping as key"),
    "escape beyond Unicode": ('name: "\\UFFFFFFFF"\n', r"not valid YAML"),
    # A43: keys
    "duplicate key": (GOOD + "title: again\n", r":\d+: title: the key is already on line \d+; remove one"),
    "unknown key": (GOOD + "memmory: 1\n", r':\d+: memmory: unknown key\. Did you mean "memory"\?'),
    "missing key": ("format_version: 1\nname: mine\n", r":1: the file: missing title, kind, vendor"),
    "without unit": (
        _with("bandwidth_gb_per_s", "bandwidth: 3350"),
        r":\d+: memory\.bandwidth: a number needs its unit in the key; write bandwidth_gb_per_s",
    ),
    "wrong unit": (
        _with("bandwidth_gb_per_s", "bandwidth_gib_per_s: 3350"),
        r':\d+: memory\.bandwidth_gib_per_s: unknown key\. Did you mean "bandwidth_gb_per_s"\?',
    ),
    "bare number": (_with("bandwidth_gb_per_s", "bandwidth_gb_per_s: 3350"), r"3350 \(a number\) .*source such as"),
    "fact without source": (
        _with("bandwidth_gb_per_s", "bandwidth_gb_per_s: {value: 3350}"),
        r"memory\.bandwidth_gb_per_s: missing source, kind, confidence",
    ),
    # A43: values
    "negative": (_bandwidth("-1"), rf"memory\.bandwidth_gb_per_s\.value: -1 is {_RANGE}"),
    "zero": (_bandwidth("0"), rf"memory\.bandwidth_gb_per_s\.value: 0 is {_RANGE}"),
    "nan": (_bandwidth(".nan"), rf"memory\.bandwidth_gb_per_s\.value: \.nan is {_RANGE}"),
    "infinite": (_bandwidth(".inf"), rf"memory\.bandwidth_gb_per_s\.value: \.inf is {_RANGE}"),
    "1e300": (_bandwidth("1e300"), rf"memory\.bandwidth_gb_per_s\.value: 1e300 is {_RANGE}"),
    "overflow": (_bandwidth("1e999"), rf"memory\.bandwidth_gb_per_s\.value: 1e999 is {_RANGE}"),
    "5,000 digits": (_bandwidth("9" * 5000), r"memory\.bandwidth_gb_per_s\.value: 9+\.\.\. is too long for a number"),
    # A41: values that other loaders turn into something else
    "sexagesimal": (_bandwidth("1:30"), r"memory\.bandwidth_gb_per_s\.value: .*1:30 is text, not a number"),
    "octal": (_bandwidth("017"), r"memory\.bandwidth_gb_per_s\.value: 017 is ambiguous because of its leading zero"),
    "off": (_bandwidth("off"), r"memory\.bandwidth_gb_per_s\.value: off is text, not a number"),
    "date": (_bandwidth("2024-01-01"), r"memory\.bandwidth_gb_per_s\.value: 2024-01-01 is text, not a number"),
    "month 13": (_bandwidth("2024-13-01"), r"memory\.bandwidth_gb_per_s\.value: 2024-13-01 is text, not a number"),
    "unit in the value": (_bandwidth("3350 GB/s"), r"memory\.bandwidth_gb_per_s\.value: 3350 GB/s is text"),
    "truth value": (_bandwidth("true"), r"memory\.bandwidth_gb_per_s\.value: true is a truth value"),
    "ecc off": (_with("ecc", "ecc: off"), r":\d+: memory\.ecc: off is text; write true or false"),
    "unquoted number as name": (_with("name", "name: 4090"), r'name: 4090 is a number; text is wanted, .*"4090"'),
    "name with escape": (_with("name", r'name: "a\e[31m"'), r"name: .* is not printable text"),
    "name that is a path": (_with("name", "name: ../../etc"), r"name: .* lower-case letters"),
    "alias in upper case": (_with("aliases", "aliases: [A_B]"), r"aliases: .*lower case with hyphens"),
    "unknown kind": (_with("kind", "kind: gpuu"), r"kind: gpuu is given; allowed are gpu, cpu, npu"),
    "unknown dtype": (GOOD.replace("  int4: {", "  int3: {"), r"per_unit\.int3: unknown key\. Did you"),
    "version of the future": (_with("format_version", "format_version: 2"), r"format_version: .*reads 1 only"),
    "capability as number": (_with("compute_capability", "compute_capability: 8.0"), r"capability: 8\.0 is a num"),
    "capability as text": (_with("compute_capability", "compute_capability: sm80"), r"compute_capability: .*such as"),
    "half a unit": (_with("count", f"count: {_fact('1.5')}"), r"units\.count: 1\.5 is not whole"),
    "idle above limit": (_with("idle_watt", f"idle_watt: {_fact('900')}"), r"power\.idle_watt: 900 is above limit"),
    "list for a section": (GOOD + "constraints: [a]\n", r"constraints: a list is given; a mapping is wanted"),
    "absurd alignment": (GOOD + "constraints: {alignment_elements: 0}\n", r"alignment_elements: 0 is out of range"),
}  # fmt: skip


def test_there_are_at_least_forty() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_profile_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = HOSTILE[case]
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(InputError, match=sentence) as caught:
        load_hardware(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 600


def test_no_rates_at_all_is_refused(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    start = lines.index("dense_tflop_per_s:")
    stop = next(
        i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ") and not lines[i].startswith("#")
    )
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join([*lines[:start], "dense_tflop_per_s: {}", *lines[stop:]]))
    with pytest.raises(InputError, match="no rate is given; list at least one of"):
        load_hardware(path)


def test_byte_order_mark_and_windows_lines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_hardware(path).name == "mine"


def test_the_names_that_error_messages_show_are_escaped() -> None:
    with pytest.raises(InputError) as caught:
        load_hardware("\x1b[31mred\u202e")
    assert str(caught.value).isprintable()


_PROBE = """
import resource, sys
from pathlib import Path
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
load_hardware("a100")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_hardware(Path(sys.argv[1]))
except InputError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in KiB on Linux only")
@pytest.mark.parametrize(
    "case", ["alias bomb", "merge bomb", "200k brackets", "self reference", "python tag", "2 MiB", "60k values"]
)
def test_bombs_neither_crash_nor_fill_memory(case: str, tmp_path: Path) -> None:
    content, _ = HOSTILE[case]
    path = tmp_path / "bomb.yaml"
    path.write_text(str(content))
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50 * 1024
