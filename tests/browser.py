"""A person at a real browser, and the installation whose pages they look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selenium.common.exceptions import NoAlertPresentException, WebDriverException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from bench.station import OPERATOR, Station

WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody at a browser of their own, in front of an installation's pages."""

    driver: Chrome
    station: Station

    def open(self, path: str) -> None:
        """Load a page."""
        self.driver.get(f"{self.station.url}{path}")

    def log_in(self, name: str = OPERATOR) -> None:
        """Log in by the form, and come to the overview."""
        self.open("/ops/login")
        self.one("#name").send_keys(name)
        self.one("#password").send_keys(self.station.password)
        self.press("Log in")
        self.wait("the overview", lambda: "Overview" in self.driver.title)

    def all(self, selector: str) -> list[WebElement]:
        """Find elements; they may be hidden."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Find an element, and fail where there is none."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str = "body") -> str:
        """Read what a person sees of an element."""
        return self.one(selector).text

    def press(self, label: str, within: str = "body") -> None:
        """Press the one visible button, link or summary with this label."""
        selector = ", ".join(f"{within} {kind}" for kind in ("button", "a", "summary"))
        found = [one for one in self.all(selector) if one.is_displayed()]
        (wanted,) = [one for one in found if one.text == label]
        wanted.click()

    def keys(self, *pressed: str) -> None:
        """Type on the keyboard, wherever the focus is."""
        ActionChains(self.driver).send_keys(*pressed).perform()

    def tab_to(self, label: str) -> None:
        """Press Tab until the focus is on what has this text or name, and is seen to be there."""
        for _ in range(60):
            self.keys(Keys.TAB)
            focus = self.driver.switch_to.active_element
            if label in (focus.text, focus.get_attribute("name")):
                outline = focus.value_of_css_property("outline-style")
                assert outline != "none", f"nobody sees that the focus is on {label}"
                return
        raise AssertionError(f"no Tab leads to {label}")

    def wait(self, what: str, found: Callable[[], Any]) -> None:
        """Wait until something is so on the page, which may be loading."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not _so(found):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not in time; the page says\n{self.text()[:2000]}")
            time.sleep(0.05)

    def wait_for_state(self, state: str) -> None:
        """Load the invoice's page again until it shows this state, and no worker is at it."""

        def shown() -> bool:
            self.driver.refresh()
            return facts(self)["State"] == state

        self.wait(f"the state {state}", shown)

    def script(self, text: str, *given: Any) -> Any:
        """Run a script in the page, past its policy, and return its answer."""
        return self.driver.execute_script(text, *given)

    def complaints(self) -> list[str]:
        """Return what the browser's console said of our pages since the last look."""
        told = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [one["message"] for one in told]

    def alert(self) -> str | None:
        """Return the text of an open alert; None: there is none."""
        try:
            return self.driver.switch_to.alert.text
        except NoAlertPresentException:
            return None


def _so(found: Callable[[], Any]) -> bool:
    try:
        return bool(found())
    except (WebDriverException, KeyError):
        return False  # the page is between two loads


def wait_until(what: str, found: Callable[[], Any]) -> None:
    """Wait until something is so outside the browser."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not found():
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.05)


def facts(someone: Visitor, selector: str = "main > dl.facts") -> Mapping[str, str]:
    """Read a list of facts on a page in one go: each name with what is said of it."""
    found: dict[str, str] = someone.script(_FACTS, selector)
    return found


_FACTS = """
return Object.fromEntries([...document.querySelectorAll(`${arguments[0]} > dt`)]
  .map(name => [name.innerText, name.nextElementSibling.innerText]));
"""
