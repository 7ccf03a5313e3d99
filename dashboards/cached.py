"""What views read, kept in memory as long as the files behind it have not changed."""

from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import data
from interp.run import Run, Store

# Each function takes the stamps of the files it reads, which make the key; the same path, time and size are not read
# twice. `persist` stays off: it would write pickles. Results are copies, so a view may change what it gets.


def metrics(run: Run) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; StoreError as `Run.metrics`."""
    return _metrics(str(run.path), data.stamp(run.path / data.METRICS))


def analysis(run: Run, key: str) -> dict[str, Any]:
    """A stored analysis; errors as `Run.analysis`."""
    return _analysis(str(run.path), key, data.stamp(run.path / "analysis" / f"{key}.json"))


def arrays(run: Run, key: str) -> dict[str, Any]:
    """Arrays of a stored analysis; errors as `Run.analysis_arrays`."""
    return _arrays(str(run.path), key, data.stamp(run.path / "analysis" / f"{key}.json"))


def followed(run: Run) -> data.Followed | None:
    """Stored detections over checkpoints; see `dashboards.data.followed`."""
    return _followed(str(run.path), data.stamp(run.path / "analysis"), data.stamp(run.path / data.METRICS))


def text(path: Path) -> str:
    """A text file, such as report.html."""
    return _text(str(path), data.stamp(path))


def _run(path: str) -> Run:
    return Store(Path(path).parent).run(Path(path).name)


@st.cache_data(max_entries=64, show_spinner=False)
def _metrics(path: str, stamp: data.Stamp) -> list[dict[str, Any]]:
    return _run(path).metrics()


@st.cache_data(max_entries=256, show_spinner=False)
def _analysis(path: str, key: str, stamp: data.Stamp) -> dict[str, Any]:
    return _run(path).analysis(key)


@st.cache_data(max_entries=32, show_spinner=False)
def _arrays(path: str, key: str, stamp: data.Stamp) -> dict[str, Any]:
    return _run(path).analysis_arrays(key)


@st.cache_data(max_entries=16, show_spinner=False)
def _followed(path: str, analyses: data.Stamp, metrics: data.Stamp) -> data.Followed | None:
    return data.followed(_run(path))


@st.cache_data(max_entries=8, show_spinner=False)
def _text(path: str, stamp: data.Stamp) -> str:
    return Path(path).read_text(encoding="utf-8")
