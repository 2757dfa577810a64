"""`codesign validate` end to end: both kinds of tables, the page, and bad input."""

import json

import pytest
from headless import needs_browser, opened

from tests.command_line import codesign

KERNEL = "hw,library,op,scheme,m,n,k,measured_s\n"
GOOD = "h100,vllm,gemm,bfloat16,16,4096,4096,2e-5\nh100,vllm,gemm,fp8,256,4096,4096,3e-5\n"
RUN = "hw,library,model,scheme,concurrency,prompt_tokens,output_tokens,measured_tpot_s,measured_ttft_s\n"
RUNS = "h100,vllm,llama-7b,BF16,8,512,128,0.01,0.05\nh100,vllm,llama-7b,FP8,64,512,128,0.02,\n"


def validate(folder, text, *options):
    """Run the command on a table of this text."""
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return codesign("validate", "--input", "t.csv", *options, cwd=folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [(KERNEL + GOOD, ("Kernel time: off by", "scheme")), (RUN + RUNS, ("Time per output token:", "requests in"))],
)
def test_kernels_and_servers(text, words, tmp_path):
    done = validate(tmp_path, text)
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_json_is_one_strict_document(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} in the output")

    done = validate(tmp_path, RUN + RUNS + "h100,vllm,llama-7b,BF16,x,1,1,1,1\n", "--json")
    found = json.loads(done.stdout, parse_constant=refuse)
    assert (done.returncode, found["schema"], found["kind"]) == (0, "codesign.validation", "servers")
    assert found["rejections"] == [{"reason": "concurrency is not a number", "lines": [4]}]
    assert [figure["whole"]["row_count"] for figure in found["figures"]] == [2, 1]


def test_the_page_is_written_once(tmp_path):
    done = validate(tmp_path, KERNEL + GOOD, "--html", "page.html")
    assert (done.returncode, done.stderr) == (0, "")
    first = (tmp_path / "page.html").read_bytes()
    refused = validate(tmp_path, KERNEL + GOOD, "--html", "page.html")
    assert refused.returncode == 3
    assert "exists already; use --force to replace it" in refused.stderr
    assert validate(tmp_path, KERNEL + GOOD, "--html", "page.html", "--force").returncode == 0
    assert (tmp_path / "page.html").read_bytes() == first


def test_the_page_is_written_also_where_the_gate_fails(tmp_path):
    done = validate(tmp_path, KERNEL + GOOD.replace("e-5", "e-1"), "--html", "page.html", "--fail-above", "10%")
    assert done.returncode == 7
    assert "above the limit of 10 %" in done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_bad_rows_are_rejected_and_the_others_used(tmp_path):
    bad = "".join(
        f"h100,vllm,gemm,bfloat16,{row}\n"
        for row in ("16,4096,4096,nan", "16,4096,4096,-1", "-16,4096,4096,1e-5", "x,4096,4096,1e-5", "16,4096",
                    "16,inf,4096,1e-5")
    )  # fmt: skip
    done = validate(tmp_path, KERNEL + bad + GOOD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 rows in the file; rejected rows: 6." in done.stdout
    for reason, line in (("measured_s is NaN", 2), ("measured_s is not above zero", 3), ("m is not above zero", 4),
                         ("m is not a number", 5), ("measured_s is empty", 6), ("n is infinite", 7)):  # fmt: skip
        assert any(reason in row and row.split()[-1] == str(line) for row in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read this as CSV"),
        ("a,b\n1,2\n", "no measured table"),
        (KERNEL, "no row could be predicted"),
        (KERNEL + "h100,vllm,gemm,bfloat16,16,4096,4096,\n", "no row could be predicted"),
        (KERNEL + GOOD.replace("h100", "h1000"), "no row could be predicted"),
        ("format_version," + KERNEL + "2," + GOOD.splitlines()[0] + "\n", "newer than 1"),
        (KERNEL + "\x00" * 100, ""),
        (KERNEL + "h100,vllm,gemm,bfloat16,16,4096,4096,1,2,3,4\n", "no row could be predicted"),
        (KERNEL + '"h100,vllm\n', "cannot read this as CSV"),
        (RUN, "no row could be predicted"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(text, words, tmp_path):
    done = validate(tmp_path, text)
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_is_no_page(tmp_path):
    done = validate(tmp_path, KERNEL + GOOD, "--html", str(tmp_path))
    assert done.returncode == 3
    assert "this is a folder" in done.stderr


@needs_browser
def test_all_charts_are_drawn_offline(tmp_path):
    hostile = "h100,\"vllm-</script><script>document.title='owned'</script>\",gemm,fp8,16,4096,4096,2e-5\n"
    assert validate(tmp_path, KERNEL + GOOD + hostile, "--html", "page.html").returncode == 0
    done = opened(tmp_path / "page.html", tmp_path / "p")
    assert done.stdout.count('class="main-svg"') >= 3
    assert "<title>owned" not in done.stdout
    assert "CONSOLE" not in done.stderr
