"""With --expected-skip, a skip is an error unless its reason is one of those that are expected on this machine."""

import re

import pytest


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--expected-skip",
        action="append",
        metavar="REGEX",
        help="a reason to skip that is expected here; any other becomes an error (may be repeated)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    return judge((yield), item.config.getoption("expected_skip"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    return judge((yield), collector.config.getoption("expected_skip"))


def judge(report, expected: list[str] | None):
    """Turn the report of an unexpected skip into that of a failure."""
    if expected is None or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not any(re.search(pattern, reason) for pattern in expected):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, but not for a reason that is expected here: {reason}"
    return report
