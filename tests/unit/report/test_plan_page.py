from dataclasses import replace

import pytest
from machines import round_hardware, small_model

import codesign
from codesign.report.plan_page import write_plan_page

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def plan():
    return codesign.plan(round_hardware(), replace(small_model(), name="llama-7b"), pareto=("tpot", "quality"))


def test_the_page_is_one_offline_file_with_every_table(plan, tmp_path):
    page = tmp_path / "plan.html"
    write_plan_page(plan, page)
    text = page.read_text(encoding="utf-8")
    assert len(text) < 6e6
    assert "default-src &#39;none&#39;" in text
    for word in ("Fused groups", "Where the ideal gain goes", "Refused", plan.verdict.split(":")[0], "figure-pareto"):
        assert word in text
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]


def test_names_are_text_not_markup(plan, tmp_path):
    hostile = replace(
        plan,
        model=HOSTILE,
        verdict=f"Run {HOSTILE}",
        groups=tuple(replace(group, name="<img src=x onerror=alert(1)>") for group in plan.groups),
    )
    page = tmp_path / "plan.html"
    write_plan_page(hostile, page)
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_same_plan_gives_the_same_bytes(plan, tmp_path):
    for name in ("a.html", "b.html"):
        write_plan_page(plan, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
