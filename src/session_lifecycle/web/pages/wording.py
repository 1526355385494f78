"""Figures as text: numbers with the visitor's marks, money, durations, and times in the visitor's time zone.

Every figure has a short text and an exact one: `Wording.figure` gives both, for the cell and for its hover.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple
from zoneinfo import ZoneInfo

NOTHING = "\N{EN DASH}"
_NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
_QUOTE = "\N{RIGHT SINGLE QUOTATION MARK}"
# The marks of thousands and of decimals, by the language. Other languages write numbers as English does.
_MARKS = {
    **dict.fromkeys(("da", "de", "el", "es", "hr", "id", "it", "nl", "pt", "ro", "sl", "tr", "vi"), (".", ",")),
    **dict.fromkeys(
        ("bg", "cs", "et", "fi", "fr", "hu", "lt", "lv", "nb", "nn", "no", "pl", "ru", "sk", "sv", "uk"),
        (_NARROW_SPACE, ","),
    ),
    "de-ch": (_QUOTE, "."),
    "de-li": (_QUOTE, "."),
    "es-mx": (",", "."),
}
_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3_600, 86_400
SHORTEST_COMPACT = 10_000
"""The number from which a compact text has a letter in place of its last digits."""


class Figure(NamedTuple):
    """A figure as text."""

    text: str
    exact: str
    """The same figure with all its digits."""


def marks_of(languages: str) -> tuple[str, str]:
    """The marks of thousands and of decimals in the first language of an `Accept-Language` header."""
    first = languages.split(",", maxsplit=1)[0].split(";", maxsplit=1)[0].strip().lower()
    return _MARKS.get(first) or _MARKS.get(first.split("-")[0]) or (",", ".")


@dataclass(frozen=True)
class Wording:
    """How one visitor reads figures."""

    zone: ZoneInfo
    marks: tuple[str, str] = (",", ".")

    def number(self, value: float | Decimal, decimals: int = 0) -> str:
        """The number with marks of thousands, rounded to so many decimals."""
        thousands, point = self.marks
        return f"{value:,.{decimals}f}".replace(",", "\0").replace(".", point).replace("\0", thousands)

    def count(self, value: int | None) -> Figure:
        """A count, whole."""
        text = NOTHING if value is None else self.number(value)
        return Figure(text, text)

    def compact(self, value: int | None) -> Figure:
        """A count in at most four digits, such as `1.2M`."""
        if value is None or abs(value) < SHORTEST_COMPACT:
            return self.count(value)
        size, letter = next(scale for scale in _SCALES if abs(value) >= scale[0])
        scaled = value / size
        return Figure(self.number(scaled, 1 if abs(scaled) < 100 else 0) + letter, self.number(value))  # noqa: PLR2004 - three digits

    def money(self, value: Decimal | None) -> Figure:
        """US dollars: cents, and four decimals below a dollar. The exact text has every digit that is stored."""
        if value is None:
            return Figure(NOTHING, NOTHING)
        size = abs(value)
        sign = "-" if value < 0 else ""
        places = max(2, -int(value.normalize().as_tuple().exponent)) if value else 2
        exact = f"{sign}${self.number(size, places)}"
        if size and size < Decimal("0.0001"):
            return Figure(f"{sign}<${self.number(Decimal('0.0001'), 4)}", exact)
        return Figure(f"{sign}${self.number(size, 2 if size >= 1 or not size else 4)}", exact)

    def price(self, value: Decimal | None) -> Figure:
        """US dollars with four decimals, so that the decimal marks of a column are below each other."""
        exact = self.money(value).exact
        return Figure(NOTHING if value is None else f"{'-' if value < 0 else ''}${self.number(abs(value), 4)}", exact)

    def counted(self, count: int, noun: str) -> str:
        """How many there are of something that is named with a regular plural."""
        return f"{self.number(count)} {noun}{'' if count == 1 else 's'}"

    def share(self, value: float | None) -> Figure:
        """A part of one, in percent."""
        if value is None:
            return Figure(NOTHING, NOTHING)
        return Figure(f"{self.number(100 * value, 1)}%", f"{self.number(100 * value, 4)}%")

    def duration(self, seconds: float | None) -> Figure:
        """A duration in its two largest units."""
        if seconds is None:
            return Figure(NOTHING, NOTHING)
        exact = f"{self.number(seconds, 3)} s"
        if seconds < _SECOND:
            return Figure(f"{self.number(1_000 * seconds)} ms", exact)
        if seconds < _MINUTE:
            return Figure(f"{self.number(seconds, 1)} s", exact)
        whole = round(seconds)
        for unit, letter, part, its_letter in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "m")):
            if whole >= unit:
                return Figure(f"{self.number(whole // unit)}{letter} {whole % unit // part:02}{its_letter}", exact)
        return Figure(f"{whole // _MINUTE}m {whole % _MINUTE:02}s", exact)

    def period(self, length: timedelta) -> str:
        """A whole duration, such as `7 days`."""
        return self.counted(length.days, "day") if not length.seconds else self.duration(length.total_seconds()).text

    def moment(self, value: datetime | None) -> Figure:
        """A time to the minute, in the visitor's zone. The exact text has the microseconds and the offset."""
        if value is None:
            return Figure(NOTHING, NOTHING)
        local = value.astimezone(self.zone)
        return Figure(local.strftime("%Y-%m-%d %H:%M"), local.isoformat(" ", "microseconds"))

    def clock(self, value: datetime) -> Figure:
        """A time to the second, without its day."""
        return Figure(value.astimezone(self.zone).strftime("%H:%M:%S"), self.moment(value).exact)

    def bucket(self, value: datetime, bucket: str) -> Figure:
        """The beginning of an hour, day, week or month."""
        form = {"hour": "%m-%d %H:%M", "month": "%Y-%m"}.get(bucket, "%Y-%m-%d")
        return Figure(value.astimezone(self.zone).strftime(form), self.moment(value).exact)

    def ago(self, value: datetime) -> Figure:
        """How long ago a time is."""
        past = max(timedelta(0), datetime.now(UTC) - value)
        return Figure(f"{self._whole(past)} ago", self.moment(value).exact)

    def _whole(self, past: timedelta) -> str:
        seconds = int(past.total_seconds())
        return f"{seconds} s" if seconds < _MINUTE else self.duration(seconds).text

    def change(self, now: float | Decimal | None, before: float | Decimal | None) -> str | None:
        """How much a figure grew, in percent; None where nothing can be compared."""
        if now is None or not before:
            return None
        growth = float(now) / float(before) - 1
        return f"{'+' if growth > 0 else ''}{self.number(100 * growth, 1)}%"

    def points(self, now: float | None, before: float | None) -> str | None:
        """How much a share grew, in percentage points; None where nothing can be compared."""
        if now is None or before is None:
            return None
        return f"{'+' if now > before else ''}{self.number(100 * (now - before), 1)} points"
