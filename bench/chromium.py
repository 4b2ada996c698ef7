"""Headless Chromium for browser tests and screenshots: of this machine, and on the loopback only.

apt-get install -y --no-install-recommends chromium chromium-driver
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

WIDTH, HEIGHT = 1200, 900

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it may run as root here, and loads pages of ours only
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--hide-scrollbars",
    "--disable-lcd-text",  # letters in shades of their own colour: smaller pictures
    f"--window-size={WIDTH},{HEIGHT}",
)


class NoBrowser(RuntimeError):
    """There is no browser on this machine; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The browser and what drives it."""

    browser: str
    driver: str


def programs() -> Programs:
    """Find both on PATH; raise NoBrowser."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise NoBrowser(
            "no Chromium with its chromedriver on PATH: on Debian,"
            " apt-get install --no-install-recommends chromium chromium-driver"
        )
    return Programs(browser, driver)


@contextmanager
def chromium(found: Programs) -> Iterator[Chrome]:
    """Run a browser with an empty profile for the length of a `with` block."""
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        options = ChromeOptions()
        options.binary_location = found.browser
        for flag in (*_FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.unhandled_prompt_behavior = "ignore"  # an alert that is open stays to be seen
        with warnings.catch_warnings():
            # the other way it names needs a remote driver, which has none of Chromium's commands
            warnings.simplefilter("ignore", DeprecationWarning)
            options.ignore_local_proxy_environment_variables()
        # the path is told: nothing is looked for on the network
        service = Service(
            executable_path=found.driver,
            env={**os.environ, "HOME": folder},
            log_output=str(Path(folder) / "driver.log"),
        )
        driver = Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


def set_scheme(driver: Chrome, scheme: str) -> None:
    """Be a browser of somebody who wants "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    _ask(driver, "Emulation.setEmulatedMedia", features=features)


def set_viewport(driver: Chrome, width: int, height: int, *, phone: bool = False) -> None:
    """Be a screen of this size."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    _ask(driver, "Emulation.setDeviceMetricsOverride", **size)


def reset_viewport(driver: Chrome) -> None:
    """Be the usual window again."""
    _ask(driver, "Emulation.clearDeviceMetricsOverride")


def _ask(driver: Chrome, command: str, **parameters: Any) -> None:
    driver.execute_cdp_cmd(command, parameters)
