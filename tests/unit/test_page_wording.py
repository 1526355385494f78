"""What pages say: figures in the visitor's words, addresses, and the bars of a waterfall."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from session_lifecycle.models import RunDetail, Step
from session_lifecycle.web.pages.address import Address
from session_lifecycle.web.pages.waterfall import MOST_DEPTH, waterfall
from session_lifecycle.web.pages.wording import Wording, marks_of
from support.usage import A

AT = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
ENGLISH = Wording(ZoneInfo("UTC"))
GERMAN = Wording(ZoneInfo("Europe/Berlin"), marks_of("de-DE,de;q=0.9,en;q=0.8"))
SPACE = "\N{NARROW NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("languages", "marks"),
    [
        ("", (",", ".")),
        ("en-GB", (",", ".")),
        ("de", (".", ",")),
        ("de-CH, de", ("\N{RIGHT SINGLE QUOTATION MARK}", ".")),
        ("fr;q=0.8", (SPACE, ",")),
        ("xx, de", (",", ".")),
        (";;,", (",", ".")),
    ],
)
def test_numbers_have_the_marks_of_the_first_language(languages: str, marks: tuple[str, str]) -> None:
    assert marks_of(languages) == marks


@pytest.mark.parametrize(
    ("value", "text", "exact"),
    [
        (None, "–", "–"),  # noqa: RUF001 - the dash that pages show
        (Decimal(0), "$0.00", "$0.00"),
        (Decimal("0.00001"), "<$0.0001", "$0.00001"),
        (Decimal("0.1234567"), "$0.1235", "$0.1234567"),
        (Decimal("1234.5"), "$1,234.50", "$1,234.50"),
        (Decimal("1E+3"), "$1,000.00", "$1,000.00"),
        (Decimal("-2.5"), "-$2.50", "-$2.50"),
    ],
)
def test_money_is_short_and_its_exact_text_has_every_digit(value: Decimal | None, text: str, exact: str) -> None:
    assert ENGLISH.money(value) == (text, exact)


def test_a_column_of_prices_has_four_decimals() -> None:
    assert [ENGLISH.price(Decimal(one)).text for one in ("12", "0.00001", "-0.5")] == [
        "$12.0000",
        "$0.0000",
        "-$0.5000",
    ]
    assert GERMAN.price(Decimal("1234.5")) == ("$1.234,5000", "$1.234,50")


@pytest.mark.parametrize(
    ("value", "text"),
    [(9_999, "9,999"), (10_000, "10.0k"), (123_456, "123k"), (1_200_000, "1.2M"), (5 * 10**12, "5.0T"),
     (-20_000, "-20.0k")],
)  # fmt: skip
def test_a_compact_count_has_few_digits(value: int, text: str) -> None:
    assert ENGLISH.compact(value) == (text, f"{value:,}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.25, "250 ms"), (9.94, "9.9 s"), (60, "1m 00s"), (3_599.7, "1h 00m"), (7_260, "2h 01m"),
     (90_000, "1d 01h")],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert ENGLISH.duration(seconds) == (text, f"{seconds:,.3f} s")


def test_times_are_in_the_visitors_zone() -> None:
    assert GERMAN.moment(AT) == ("2026-03-02 00:30", "2026-03-02 00:30:00.000000+01:00")
    assert GERMAN.clock(AT).text == "00:30:00"
    assert [GERMAN.bucket(AT, bucket).text for bucket in ("hour", "day", "month")] == [
        "03-02 00:30", "2026-03-02", "2026-03",
    ]  # fmt: skip
    assert ENGLISH.ago(datetime.now(UTC) + timedelta(hours=1)).text == "0 s ago"
    assert ENGLISH.period(timedelta(days=1)) == "1 day"
    assert ENGLISH.period(timedelta(hours=36)) == "1d 12h"


def test_growth_is_in_percent() -> None:
    assert ENGLISH.change(Decimal(3), Decimal(2)) == "+50.0%"
    assert ENGLISH.change(1, 2) == "-50.0%"
    assert ENGLISH.change(2, 2) == "0.0%"
    assert [ENGLISH.change(*pair) for pair in ((1, 0), (None, 1), (1, None))] == [None] * 3


def test_a_share_grows_by_points() -> None:
    assert [ENGLISH.points(*pair) for pair in ((0.75, 0.5), (0.5, 0.75), (0.5, 0.0), (None, 1), (1, None))] == [
        "+25.0 points", "-25.0 points", "+50.0 points", None, None,
    ]  # fmt: skip


def test_an_address_is_changed_without_losing_the_rest() -> None:
    query = (("status", "failed"), ("tags", "a:1"), ("tags", "b:&"), ("cursor", "c"))
    here = Address("/root", "/sessions", query)
    assert here.here(status=None) == "/root/sessions?tags=a%3A1&tags=b%3A%26&cursor=c"
    assert here.listing(order_by="cost_usd") == "/root/sessions?status=failed&tags=a%3A1&tags=b%3A%26&order_by=cost_usd"
    assert here.without("tags", "a:1") == "/root/sessions?status=failed&tags=b%3A%26"
    assert here.hidden("status") == [("tags", "a:1"), ("tags", "b:&")]
    assert here.to("/session", id="a/b?", owner=None) == "/root/session?id=a%2Fb%3F"
    assert (here.get("status"), here.get("none"), here.all("tags")) == ("failed", None, ["a:1", "b:&"])


def run(
    run_id: str, parent: str | None = None, seconds: int | None = 10, steps: Any = (), steps_count: int | None = None
) -> RunDetail:
    ends = None if seconds is None else AT + timedelta(seconds=seconds)
    return RunDetail(
        run_id=run_id, user_id=A, parent_run_id=parent, started_at=AT, ended_at=ends, cost_usd=0, tokens_in=0,
        tokens_out=0, cache_read_tokens=0, cache_write_tokens=0, tokens_total=0, duration_ms=None, errors_count=0,
        steps_count=len(steps) if steps_count is None else steps_count,
        status="running" if ends is None else "completed", steps=list(steps), messages=[], events=[],
    )  # fmt: skip


def step(step_id: str, parent: str | None = None, start: int = 0, end: int | None = 1) -> Step:
    return Step(
        step_id=step_id, run_id="r", user_id=A, kind="tool", parent_step_id=parent,
        started_at=AT + timedelta(seconds=start), ended_at=None if end is None else AT + timedelta(seconds=end),
    )  # fmt: skip


def test_a_waterfall_has_a_bar_for_each_run_and_step() -> None:
    found = waterfall([run("r", steps=[step("s", start=5, end=10), step("t", "s", 6, 4)])], AT)
    assert [(bar.depth, bar.left, bar.width) for bar in found.bars] == [(0, 0, 100), (1, 50, 50), (2, 60, 0.4)]
    assert [bar.duration_s for bar in found.bars] == [10, 5, 0]  # a step that ended before it began took no time
    assert waterfall([], AT).bars == []


def test_an_open_run_lasts_until_now() -> None:
    now = AT + timedelta(seconds=40)
    [first, second] = waterfall([run("r", seconds=None), run("q")], now).bars
    assert (first.width, first.duration_s, second.width) == (100, None, 25)
    [alone] = waterfall([run("r", seconds=None)], AT - timedelta(seconds=9)).bars
    assert (alone.left, alone.width) == (0, 0.4)


def test_steps_beyond_the_page_are_counted() -> None:
    shown = run("r", steps=[step(f"s{number}") for number in range(2, 5)], steps_count=9)
    found = waterfall([shown], AT, 2)
    assert [bar.step.step_id for bar in found.bars if bar.step] == ["s2", "s3", "s4"]
    assert found.left_out == {"r": 4}
    assert waterfall([run("r", steps_count=9)], AT, 20).left_out == {}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_circle_of_parents_ends(length: int) -> None:
    runs = [run(f"r{number}", f"r{(number + 1) % length}" if length > 1 else "none") for number in range(length)]
    assert len(waterfall(runs, AT).bars) == length


def test_deep_nesting_is_bounded() -> None:
    runs = [run(f"r{number}", f"r{number - 1}" if number else None) for number in range(3_000)]
    assert [bar.depth for bar in waterfall(runs, AT).bars][:10] == [*range(MOST_DEPTH + 1), MOST_DEPTH]
