"""The page in a real browser without any network: pictures drawn, no error. Skipped where there is no browser."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from machines import round_hardware, small_model

import codesign
from codesign.report.plan_page import write_plan_page

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_all_pictures_are_drawn_offline(tmp_path):
    plan = codesign.plan(round_hardware(), replace(small_model(), name="llama-7b"), pareto=("tpot", "quality"))
    hostile = replace(plan, model="</script><script>document.title='owned'</script>")
    page = tmp_path / "plan.html"
    write_plan_page(hostile, page)
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
        "--dump-dom",
        f"--user-data-dir={tmp_path / 'p'}",
    )
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.count('class="main-svg"') >= 6
    assert "<title>owned" not in done.stdout
    assert "CONSOLE" not in done.stderr
