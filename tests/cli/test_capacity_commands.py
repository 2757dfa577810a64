"""`codesign simulate` and `codesign size` as a user runs them, with right and wrong input."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from headless import needs_browser, opened

from codesign.capacity import candidates
from codesign.cli.main import command

SIMULATE = ("simulate", "--hw", "h100", "--model", "llama-3.1-8b", "--requests", "400")
SIZE = ("size", "--hw", "h100", "--model", "llama-3.1-8b", "--rate", "30", "--tpot-p95", "0.02")


@pytest.fixture(autouse=True)
def few_requests(monkeypatch):
    """Let `size` simulate fewer requests of each replica; `simulate` is told how many."""
    monkeypatch.setattr(candidates, "REQUESTS_PER_REPLICA", 500)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} in the output")


def test_one_rate_prints_percentiles():
    done = run(*SIMULATE, "--rate", "10", "--ttft-p95", "1")
    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    for word in ("first token", "per output token", "p99", "output tokens/s", "first token 1 s at p95) kept", "origin"):
        assert word in text


def test_a_range_of_rates_marks_the_knee():
    done = run(*SIMULATE, "--rate", "1:200", "--points", "6", "--gpus", "2", "--tpot-p95", "0.03")
    assert done.exit_code == 0
    assert "knee" in done.stdout
    assert "last within objectives" in done.stdout
    assert "2 replicas" in done.stdout


def test_a_plan_is_simulated_as_it_stands(tmp_path):
    plan = tmp_path / "plan.json"
    made = run("plan", "--hw", "a100", "--model", "llama-2-7b", "--max-memory-gib", "12", "--out", str(plan))
    assert made.exit_code == 0
    done = run("simulate", "--plan", str(plan), "--rate", "2", "--requests", "200", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout, parse_constant=refuse)
    assert (found["hardware"], found["model"], found["scheme"]) == ("a100-sxm-80gb", "llama-2-7b", "plan")
    assert found["curve"]["loads"][0]["percentiles"]["ttft_s"]["95"]["low"] > 0
    other = run("simulate", "--plan", str(plan), "--model", "llama-3.1-8b", "--rate", "2")
    assert getattr(other.exception, "exit_code", 0) == 3
    assert "whose shapes are not those" in str(other.exception)


def test_a_log_and_its_oddities(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("arrival_s,prompt_tokens,output_tokens\n3,100,10\n1,x,5\n2,50,7\n", encoding="utf-8")
    done = run(*SIMULATE[:-2], "--trace", str(log))
    assert done.exit_code == 0
    assert "2 requests of a log" in done.stdout
    assert "1 rows were left out: line 3 (no number)" in done.stderr
    assert "sorted by arrival" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ((), 2, "--rate 20, or --rate 1:40"),
        (("--rate", "0"), 2, "is not understood"),
        (("--rate", "-3"), 2, "is not understood"),
        (("--rate", "nan"), 2, "is not understood"),
        (("--rate", "40:1"), 2, "is not understood"),
        (("--rate", "1e9"), 2, "is not understood"),
        (("--rate", "5", "--prompt", "0"), 3, "--prompt"),
        (("--rate", "5", "--output", "many"), 3, "--output"),
        (("--rate", "5", "--workload", "chatt"), 3, 'Did you mean "chat"'),
        (("--rate", "5", "--trace", "log.csv"), 2, "leave out --rate"),
        (("--rate", "5", "--gpus", "2", "--tensor-parallel", "4"), 3, "raise --gpus"),
        (("--rate", "5", "--prompt", "16000000"), 5, "does not fit into"),
        (("--trace", "missing.csv"), 3, "cannot read"),
    ],
)
def test_wrong_input_is_a_sentence(arguments, code, why):
    done = run(*SIMULATE, *arguments)
    said = done.output + str(done.exception)
    assert why in said
    assert getattr(done.exception, "exit_code", done.exit_code) == code


def test_sizing_answers_with_machine_number_and_price(tmp_path):
    page = tmp_path / "size.html"
    done = run(*SIZE, "--html", str(page))
    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    for word in ("Cheapest:", "h100-sxm", "a month", "per million output tokens", "One more", "Bottlenecks", "Power:"):
        assert word in text
    assert page.read_text(encoding="utf-8").count("figure-") >= 2
    found = json.loads(run(*SIZE, "--json").stdout, parse_constant=refuse)
    assert found["machines"][0]["usd_per_month"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--hw", ","), 2, "--hw names no machine"),
        (("--price", "h100=cheap"), 2, "write a100=1.80"),
        (("--tpot-p95", "0.00001"), 4, "a request alone takes"),
        (("--budget-per-month", "3"), 4, "The cheapest is"),
        (("--max-quality-loss", "0"), 2, "max-quality-loss"),
        (("--hw", "h10000"), 3, "Did you mean"),
    ],
)
def test_wrong_questions_of_size_are_sentences(arguments, code, why):
    done = run(*SIZE, *arguments)
    assert why in done.output + str(done.exception)
    assert getattr(done.exception, "exit_code", done.exit_code) == code


def test_size_needs_a_promise_and_a_rate():
    for arguments, why in ((SIZE[:-2], "--ttft-p95"), ((*SIZE[:5], "--tpot-p95", "1"), "--rate 20")):
        done = run(*arguments)
        assert done.exit_code == 2
        assert why in done.output


@needs_browser
@pytest.mark.parametrize("arguments", [(*SIMULATE, "--rate", "1:200", "--points", "5"), SIZE])
def test_pages_draw_offline(tmp_path: Path, arguments: tuple[str, ...]):
    page = tmp_path / "page.html"
    assert run(*arguments, "--html", str(page)).exit_code == 0
    done = opened(page, tmp_path / "p")
    assert done.stdout.count('class="main-svg"') >= 2
    assert "CONSOLE" not in done.stderr
