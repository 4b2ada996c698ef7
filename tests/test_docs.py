"""What the documents say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from secrets_run import SECRETS
from test_hostile_bodies import BODIES

from proof.plan import SWEEP_STEPS, WEBHOOK_STEPS, WORKER_STEPS
from proof.plant import BUGS
from worker.causes import CAUSES
from worker.cli import main
from worker.config import config_of
from worker.plugins import SOURCES, kinds, plugin_class
from worker.record import State

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_readme_or_help() -> None:
    """A command that is not written about does not exist for a user."""
    for name, command in main.commands.items():
        assert f"reconciler {name}" in README or name == "demo", name
        assert command.help, name


def test_every_command_the_documents_name_exists() -> None:
    """No document tells to run something that is not there."""
    named = {
        found
        for document in DOCUMENTS
        for found in re.findall(r"(?:^|[`/ ])reconciler ([a-z]+)", document.read_text(), re.M)
    }
    assert named <= set(main.commands), named - set(main.commands)


def test_the_configuration_in_the_readme_loads() -> None:
    """What a new user copies is accepted as it stands."""
    blocks = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        text = "\n".join(line.strip() for line in block.splitlines())
        config_of(tomllib.loads(text), {})


def test_the_variables_in_the_readme_are_the_ones_that_are_missing() -> None:
    """The two secrets a new user must set are named as the program names them."""
    config = config_of({"platforms": {"billforward": {"base_url": "https://h/v1"}}}, {})
    for complaint in config.missing_secrets:
        variable = re.search(r"RECONCILER__\w+?(?=,)", complaint)
        assert variable is not None
        assert f"export {variable.group()}=" in README


def test_the_procfile_runs_commands_that_exist() -> None:
    """Each line of the Procfile, also as the README shows it, is a command of ours."""
    for line in (ROOT / "Procfile").read_text().splitlines():
        name, command = line.split(": ", 1)
        assert command.split()[0] == "reconciler"
        assert command.split()[1] in main.commands
        assert line in README, name


def test_the_table_of_usage_sources_names_every_kind_and_what_it_needs() -> None:
    """Each kind has one row, and the row has the extra that the kind cannot do without."""
    table = README.split("\n## Where usage is counted\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*)\| [^|]+ \|$", table, re.M)
    assert sorted(kind for kind, _ in rows) == kinds(SOURCES)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for kind, needs in rows:
        named = re.findall(r"`\[(\w+)\]`", needs)
        assert set(named) <= set(extras["optional-dependencies"]), kind
        assert getattr(plugin_class(SOURCES, kind), "extra", None) in (None, *named), kind


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_documented(state: State) -> None:
    """The diagram and the table know each state by its name."""
    text = (ROOT / "docs" / "states.md").read_text()
    assert f"| `{state}` |" in text
    assert re.search(rf"^    .*\b{state}\b.*-->|--> {state}\b", text, re.M)


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link names a file of the repository."""
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_screens_of_the_readme_fit() -> None:
    """Trying it, configuring it and deploying it take one screen each."""
    sections = re.split(r"^## ", README, flags=re.M)[1:]
    assert [s.splitlines()[0] for s in sections[:3]] == [
        "Try it: nothing to install",
        "Your own config, against BillForward's sandbox",
        "Deploy it with the Procfile",
    ]
    assert all(len(section.splitlines()) <= 50 for section in sections)


def test_every_cause_is_explained_to_who_is_on_call() -> None:
    """The table in docs/operating.md says what each held cause means and what to do about it."""
    text = (ROOT / "docs" / "operating.md").read_text()
    for cause in CAUSES:
        assert f"| `{cause.key}` | {cause.title} | {cause.mend} |" in text, cause.key
    told = re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.M)
    assert told == [cause.key for cause in CAUSES], "a cause that is not there any more"


def test_the_numbers_of_the_reliability_document_are_those_of_the_tests() -> None:
    """How many steps, bodies, failures and secrets it tells of is counted where they stand."""
    told = " ".join((ROOT / "docs" / "reliability.md").read_text().split())
    steps = len(WEBHOOK_STEPS + WORKER_STEPS + SWEEP_STEPS)
    for number in (
        f"each of the {steps} steps",
        f"{len(BODIES)} bodies",
        f"{len(SECRETS)} secrets",
    ):
        assert number in told, number
    assert len(BUGS) == 4, "four bugs, by the document"
