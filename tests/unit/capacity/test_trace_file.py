import os
import subprocess
import sys

import pytest

from codesign.capacity.trace_file import read_trace
from codesign.errors import InputError

LOGS = {
    "ours.csv": "arrival_s,prompt_tokens,output_tokens\n10,100,5\n10.5,200,6\n",
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,100,5\n"
    "2023-11-16 18:15:47.1805900,200,6\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,100,5,105,x\n"
    "5.5,GPT-4,200,6,206,x\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 100, "output_length": 5, "hash_ids": [0]}\n'
    '{"timestamp": 500, "input_length": 200, "output_length": 6, "hash_ids": [0, 1]}\n',
    "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,5\n0.5,200,6\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_known_layouts(tmp_path, name):
    path = tmp_path / name
    path.write_text("\ufeff" + LOGS[name] if name == "ours.csv" else LOGS[name], encoding="utf-8")
    trace = read_trace(path)
    assert trace.requests.arrival_s == pytest.approx([0.0, 0.5])
    assert trace.requests.prompt_tokens.tolist() == [100, 200]
    assert trace.requests.output_tokens.tolist() == [5, 6]
    assert trace.warnings == ()


def test_rows_that_are_no_requests_are_left_out_with_their_lines(tmp_path):
    path = tmp_path / "log.csv"
    rows = ["0,10,1", "nan,10,1", "1,0,1", "2,10,-1", "x,10,1", "3,1.5,1", "4", "", "inf,1,1", "5,20,2"]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n", encoding="utf-8")
    trace = read_trace(path)
    assert trace.requests.arrival_s.tolist() == [0.0, 5.0]
    (warning,) = trace.warnings
    assert warning.startswith("7 rows were left out: line 3 (arrival_s is out of range), line 4 (tokens must be")


def test_an_unsorted_log_is_sorted_and_says_so(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n3,30,1\n1,10,1\n2,20,1\n", encoding="utf-8")
    trace = read_trace(path)
    assert trace.requests.prompt_tokens.tolist() == [10, 20, 30]
    assert trace.warnings == ("1 requests were logged after a later one; they were sorted by arrival.",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "are not those of a log"),
        ("a,b,c\n1,2,3\n", "are not those of a log"),
        ("arrival_s,prompt_tokens,output_tokens\n", "holds no request"),
        ("arrival_s,prompt_tokens,output_tokens\nx,y,z\n", "All 1 were left out"),
        ('{"a": 1}\n', "are not those of a log"),
        ("{" * 3_000_000, "longer than"),
        ('{"timestamp": ' + "[" * 100_000 + "\n", "holds no request"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, why):
    path = tmp_path / "log"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=why):
        read_trace(path)


def test_missing_files_folders_and_bytes_are_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"arrival_s,prompt_tokens,output_tokens\n\xff\xfe,1,1\n")
    for path, why in ((tmp_path / "no", "cannot read"), (tmp_path, "cannot read"), (tmp_path / "bytes", "UTF-8")):
        with pytest.raises(InputError, match=why):
            read_trace(path)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        read_trace(tmp_path / "pipe")


def test_memory_grows_with_the_requests_alone(tmp_path):
    """A log of 300,000 requests, 60 MB of text, takes less than 60 MB of memory."""
    path = tmp_path / "log.jsonl"
    line = '{"arrival_s": %d, "prompt_tokens": 10, "output_tokens": 2, "text": "' + "x" * 120 + '"}\n'
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line % number for number in range(300_000))
    code = (
        "import resource, sys; from pathlib import Path; from codesign.capacity.trace_file import read_trace;"
        "a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; n = len(read_trace(Path(sys.argv[1])).requests);"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, kibibytes = map(int, done.stdout.split())
    assert count == 300_000
    assert kibibytes < 60 * 1024
