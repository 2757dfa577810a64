import numpy as np
import pytest

from codesign.capacity.presets import PRESETS, find_preset
from codesign.capacity.requests import (
    Bimodal,
    Demand,
    Empirical,
    Fixed,
    Lognormal,
    draw_requests,
    parse_lengths,
)
from codesign.errors import InputError


@pytest.mark.parametrize(
    "lengths", [Fixed(300), Lognormal(200, 0.7), Bimodal(100, 2000, 0.25), Empirical((10, 20, 90))]
)
def test_drawn_lengths_have_the_stated_mean(lengths):
    drawn = lengths.draw(np.random.default_rng(0), 200_000)
    assert drawn.mean() == pytest.approx(lengths.mean_tokens, rel=0.01)
    assert drawn.min() >= 1


def test_lengths_of_a_file_are_drawn_as_often_as_they_stand_there(tmp_path):
    path = tmp_path / "Lengths.txt"
    path.write_text("100\n100\n100\n4000\n", encoding="utf-8")
    lengths = parse_lengths(f"file:{path}", "--prompt")
    assert lengths == Empirical((100, 100, 100, 4000))
    drawn = lengths.draw(np.random.default_rng(0), 10_000)
    assert set(drawn) == {100, 4000}
    assert np.mean(drawn == 100) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("300\n-1\n", '"-1" is not a number of tokens')])
def test_a_file_of_lengths_that_holds_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "lengths.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        parse_lengths(f"file:{path}", "--output")


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 3.0])
def test_arrivals_have_the_stated_rate_and_variation(variation):
    requests = draw_requests(Demand(20.0, Fixed(1), Fixed(1), variation), 200_000, seed=2)
    gaps = np.diff(requests.arrival_s)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.05 * max(variation, 1e-9))


def test_a_seed_gives_the_same_lengths_at_every_rate():
    slow, fast = (draw_requests(Demand(rate, Lognormal(50, 1.0), Fixed(2)), 100, seed=5) for rate in (1.0, 10.0))
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens)
    assert slow.arrival_s == pytest.approx(fast.arrival_s * 10)


def test_texts_become_lengths():
    assert parse_lengths("300", "--prompt") == Fixed(300)
    assert parse_lengths(" Lognormal:800:0.5", "--prompt") == Lognormal(800, 0.5)
    assert parse_lengths("bimodal:100:4000:0.2", "--prompt") == Bimodal(100, 4000, 0.2)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "nan", "1e3", "3.5", "99999999999999999999", "lognormal:800", "lognormal:0:1", "lognormal:800:nan",
     "bimodal:1:2:1.5", "bimodal:1:2:-0.1", "uniform:1:2", "lognormal:800:9", "٣"],
)  # fmt: skip
def test_other_texts_are_refused_with_a_sentence(text):
    with pytest.raises(InputError, match="--output"):
        parse_lengths(text, "--output")


def test_too_many_or_no_requests_are_refused():
    for count in (0, 10**9):
        with pytest.raises(InputError, match="cannot be drawn"):
            draw_requests(Demand(1.0, Fixed(1), Fixed(1)), count, 0)


def test_presets_keep_their_published_means():
    """Means: 22,361,870 and 4,088,665 tokens in 19,366 conversation requests; 18,059,974 and 245,896 in 8,819 coding
    requests (Azure LLM inference trace 2023); 8,596 and 182 (Mooncake, tool and agent)."""
    for name, prompt, output in (("chat", 1154.7, 211.1), ("code", 2047.8, 27.9), ("agent", 8596, 182)):
        preset = find_preset(name.upper())
        assert preset.prompt.mean_tokens == pytest.approx(prompt, rel=0.01)
        assert preset.output.mean_tokens == pytest.approx(output, rel=0.01)
    assert all(preset.source for preset in PRESETS.values())
    with pytest.raises(InputError, match='Did you mean "chat"'):
        find_preset("chats")
