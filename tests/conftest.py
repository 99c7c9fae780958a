"""Every test: one over 5 seconds carries the mark `slow`; hypothesis does not look at the clock."""

import os

import pytest
from hypothesis import settings

from ponderlearn import records

settings.register_profile("course", deadline=None)
settings.load_profile("course")

LIMIT = 5  # seconds of CPU time, of the call alone: fixtures that several tests share do not count


def spent():
    "CPU seconds of this process and of the processes that it started and that have ended."
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = spent()
    result = yield
    seconds = spent() - start
    if seconds > LIMIT and item.get_closest_marker("slow") is None:
        pytest.fail(f"took {seconds:.1f} s of CPU time: over {LIMIT} s it carries pytest.mark.slow")
    return result


@pytest.fixture
def clean_records(monkeypatch):
    "Nothing recorded or expected so far, and no setting of the environment."
    for name in ("PONDERLEARN_SCALE", "PONDERLEARN_DEVICE", "PONDERLEARN_RECORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(records, "_recorded", {})
    monkeypatch.setattr(records, "_expected", {})
