"""How numbers are written in a report: the same digits in the page, the figures and the Markdown."""

from circuits.detectors.base import Interval

MINUS = "\u2212"


def decimal(value: float) -> str:
    """Three decimals below 10, fewer above; a true minus sign; `>0.999` stays below 1.000 unless it is 1."""
    size = abs(value)
    digits = 3 if size < 9.9995 else 2 if size < 99.995 else 1
    text = f"{size:.{digits}f}"
    if 0.9995 <= size < 1.0:
        text = ">0.999"
    elif 0.0 < size < 0.0005:
        text = "<0.001"
    negative = value < 0 and float(f"{size:.{digits}f}") != 0
    return f"{MINUS}{text}" if negative else text


def count(value: int) -> str:
    """Thousands separated by commas."""
    return f"{value:,}".replace("-", MINUS)


def probability(p: float) -> str:
    """A p-value with two significant digits, in plain decimals down to 1e-4."""
    if p >= 0.1:
        return f"{p:.2f}"
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.1e}".replace("-", MINUS)


def bounds(interval: Interval) -> str:
    """The interval alone, as `[0.976, 0.990]`."""
    return f"[{decimal(interval.low)}, {decimal(interval.high)}]"


def estimate(interval: Interval | None) -> str:
    """Value, interval and n in one line, or a dash where there is none."""
    if interval is None:
        return "\u2013"
    return f"{decimal(interval.value)} {bounds(interval)}, {sample(interval.n)}"


def sample(n: int) -> str:
    """`n = 1,024`, which stays on one line."""
    return f"n\u00a0=\u00a0{count(n)}"


def duration(seconds: float) -> str:
    """Seconds with one decimal."""
    return f"{seconds:.1f} s"
