"""The page in a real browser without any network: pictures drawn, no error. Skipped where there is no browser."""

from dataclasses import replace

from headless import needs_browser, opened
from machines import round_hardware, small_model

import codesign
from codesign.report.plan_page import write_plan_page


@needs_browser
def test_all_pictures_are_drawn_offline(tmp_path):
    plan = codesign.plan(round_hardware(), replace(small_model(), name="llama-7b"), pareto=("tpot", "quality"))
    hostile = replace(plan, model="</script><script>document.title='owned'</script>")
    page = tmp_path / "plan.html"
    write_plan_page(hostile, page)
    done = opened(page, tmp_path / "p")
    assert done.stdout.count('class="main-svg"') >= 6
    assert "<title>owned" not in done.stdout
    assert "CONSOLE" not in done.stderr
