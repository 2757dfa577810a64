"""The log and the lock: what a kill, a full device and several writers leave behind."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import CapabilityError, InputError
from codesign.profiler import store
from codesign.profiler.store import (
    Appender,
    cut_torn_tail,
    decode_record,
    encode_record,
    locked,
    probe_writing,
    read_log,
    sweep_temporaries,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc\n\"é", max_size=4), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def write(path: Path, count: int, worker: int = 0, padding: int = 0) -> None:
    log = Appender(path)
    for i in range(count):
        log.append({"worker": worker, "i": i, "padding": "x" * padding})
    log.close()


@given(st.dictionaries(st.text("abcé ", max_size=5), JSON, max_size=5))
def test_a_record_comes_back(record):
    line = encode_record(record)
    assert line.count(b"\n") == 1
    assert decode_record(line[:-1]) == record


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place, change):
    line = bytearray(encode_record({"case": "W4A16", "samples_s": [1.5e-4, 1.6e-4]})[:-1])
    line[place % len(line)] ^= change
    with pytest.raises(InputError):
        decode_record(bytes(line))


def test_a_torn_tail_is_left_out_and_cut(tmp_path):
    path = tmp_path / "samples.jsonl"
    write(path, 3)
    whole = path.read_bytes()
    for torn in (1, 10, len(encode_record({"worker": 0, "i": 2, "padding": ""})) - 1):
        path.write_bytes(whole + whole[:torn])
        log = read_log(path)
        assert ([one["i"] for one in log.records], log.torn_bytes) == ([0, 1, 2], torn)
        cut_torn_tail(path, log)
        assert path.read_bytes() == whole


def test_damage_inside_is_refused_with_its_offset_and_salvage_reads_the_rest(tmp_path):
    path = tmp_path / "samples.jsonl"
    write(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    data = bytearray(path.read_bytes())
    offset = len(lines[0]) + len(lines[1])
    data[offset + 40] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"byte {offset}.*--salvage"):
        read_log(path)
    log = read_log(path, salvage=True)
    assert [one["i"] for one in log.records] == [0, 1, 3, 4]
    assert [one.offset_bytes for one in log.damages] == [offset]


def test_a_line_beyond_the_limit_is_damage_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RECORD_BYTES_MAX", 4096)
    path = tmp_path / "samples.jsonl"
    write(path, 1)
    with path.open("ab") as stream:
        stream.write(b'{"crc":"00000000","rec":' + b"9" * 20_000 + b"}\n")
    write(path, 1, worker=1)
    log = read_log(path, salvage=True)
    assert ([one["worker"] for one in log.records], len(log.damages)) == ([0, 1], 1)
    with pytest.raises(InputError, match="limit"):
        Appender(path).append({"text": "x" * 5000})


def test_four_writers_tear_nothing(tmp_path):
    path = tmp_path / "samples.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, 1000, worker, 200)) for worker in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    found = {(one["worker"], one["i"]) for one in read_log(path).records}
    assert found == {(worker, i) for worker in range(4) for i in range(1000)}


def test_short_writes_are_looped(tmp_path, monkeypatch):
    write_all = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write_all(handle, bytes(data)[:7]))
    write(tmp_path / "log", 2)
    assert len(read_log(tmp_path / "log").records) == 2


def test_a_full_device_is_an_error_and_earlier_records_are_whole(tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    write(path, 2)

    def full(handle: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log = Appender(path)
    with pytest.raises(CapabilityError, match="No space left"):
        log.append({"i": 3})
    log.close()
    assert len(read_log(path).records) == 2


def test_the_real_full_device_is_noticed():
    log = Appender(Path("/dev/full"))
    with pytest.raises(CapabilityError, match="No space left"):
        log.append({"i": 0})


def test_the_probe_leaves_nothing_and_notices_a_quota(tmp_path, monkeypatch):
    probe_writing(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_some, written = os.write, []

    def quota(handle: int, data: memoryview) -> int:
        if sum(written) >= store.PROBE_BYTES // 2:
            raise OSError(122, "Disk quota exceeded")
        written.append(write_some(handle, bytes(data)[: store.PROBE_BYTES // 4]))
        return written[-1]

    monkeypatch.setattr(os, "write", quota)
    with pytest.raises(CapabilityError, match="quota"):
        probe_writing(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_refused():
    with pytest.raises(CapabilityError, match="cannot write here"):
        probe_writing(Path("/proc"))


def test_old_temporaries_are_swept_and_young_ones_kept(tmp_path):
    old, young, other = (tmp_path / name for name in (".run.json.tmp-a", ".run.json.tmp-b", "notes"))
    for path in (old, young, other):
        path.write_text("")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    os.utime(other, (time.time() - 25 * 3600,) * 2)
    sweep_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.json.tmp-b", "notes"]


def hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with locked(folder):
        ready.set()
        time.sleep(60)


def test_a_second_holder_is_told_the_first_and_a_dead_one_gives_way(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(CapabilityError, match=rf"process {holder.pid} is measuring"), locked(tmp_path):
        pass
    holder.kill()
    holder.join()
    assert json.loads((tmp_path / "LOCK").read_text())["pid"] == holder.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()
    assert (tmp_path / "LOCK").read_text() == ""
