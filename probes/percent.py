"""Shares as percent with their interval, short enough for a table of many columns; loads no torch."""


def percent(value: float, digits: int = 0) -> str:
    """97.5 as `97.5` or `98`; what only rounds to 0 or 100 is `<1` or `>99`."""
    text = f"{100 * value:.{digits}f}"
    step = 10.0**-digits
    if 0 < value < 1 and float(text) == 100:
        return f">{100 - step:.{digits}f}"
    if 0 < value < 1 and float(text) == 0:
        return f"<{step:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def percents(value: float, low: float, high: float, digits: int = 0) -> str:
    """`97 [94, 99]`, for a column whose name says that it is in percent."""
    return f"{percent(value, digits)} [{percent(low, digits)}, {percent(high, digits)}]"


def counted(counts: list[int]) -> str:
    """`n=32` where all counts are equal, else `n=16 to 32`; empty where there are none."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f"n={low:,}" if low == high else f"n={low:,} to {high:,}"
