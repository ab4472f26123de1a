import math

import pytest

from protocols.host.terminal import display_name, duration, plural, printable, rate, short_id, sparkline


def test_a_sparkline_spans_its_values_and_keeps_to_its_width() -> None:
    assert sparkline([4.0, 2.0, 0.0], 10) == "█▅▁"
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)], 10)) == 10
    assert sparkline([math.nan], 10) == "" == sparkline([], 10)


def test_control_characters_become_visible_and_long_texts_end_in_an_ellipsis() -> None:
    assert printable("a\x1b[1m\nb") == "a�[1m�b"
    assert printable("x" * 90, 10) == "xxxxxxxxx…"
    assert printable("ål 日本") == "ål 日本"
    assert short_id("3fa2bb") == "3fa2…"
    assert display_name("ola\r", "3fa2bb") == "ola� 3fa2…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.214, "214 ms"),
        (12.4, "12 s"),
        (61, "1 minute"),
        (3599, "1 hour"),
        (3 * 3600 + 300, "3 hours and 5 minutes"),
        (90 * 3600, "3 days and 18 hours"),
        (math.inf, "?"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_are_short() -> None:
    assert [rate(value) for value in (0, 0.5, 12.34, 158.9, 12345.6, math.nan)] == ["0", "0.50", "12.3", "159", "12,346", "?"]
    assert [plural(value, "peer") for value in (0, 1, 1200)] == ["0 peers", "1 peer", "1,200 peers"]
