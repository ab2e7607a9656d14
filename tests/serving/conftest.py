"""Tracing tells its log of every step; putting that into words takes longer than the tests."""

import logging

import pytest


@pytest.fixture(autouse=True)
def without_the_log_of_tracing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
