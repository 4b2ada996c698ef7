"""A real browser and a running installation, for the test files that name this as a plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from browser import Visitor
from selenium.webdriver import Chrome

from bench.chromium import NoBrowser, Programs, chromium, programs, reset_viewport, set_scheme
from bench.station import Station, started, station

COMPONENTS = {"Text messages": "text_message"}


@pytest.fixture(scope="session")
def browser_programs() -> Programs:
    """The browser of this machine; without one the test is skipped, or fails where CI asks."""
    try:
        return programs()
    except NoBrowser as error:
        if os.environ.get("BROWSER_REQUIRED"):
            pytest.fail(f"{error}; BROWSER_REQUIRED is set, so this test is not skipped")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def running_station(
    browser_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    """An installation whose processes run; no client may break a rule of its sandbox."""
    with station(tmp_path_factory.mktemp("station"), COMPONENTS) as prepared, started(prepared):
        yield prepared
        assert prepared.control.record().broken == []


@pytest.fixture(scope="module")
def browser(browser_programs: Programs, running_station: Station) -> Iterator[Chrome]:
    """A browser for the tests of one file; it ends before what it has connections to."""
    with chromium(browser_programs) as driver:
        yield driver


@pytest.fixture
def visitor(browser: Chrome, running_station: Station) -> Visitor:
    """Somebody who has not been here before, in a window of the usual size."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    reset_viewport(browser)
    set_scheme(browser, "light")
    someone = Visitor(browser, running_station)
    someone.complaints()
    return someone
