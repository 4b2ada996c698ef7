"""Why invoices are held, wait or are skipped, grouped; what is held with what to do; pure.

A reason names ids and amounts; its cause is the same for every invoice that is held alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One kind of reason. Its key never changes: it is stored, linked and alerted on."""

    key: str
    title: str  # what is wrong, in a few words
    mend: str  # what a person does about it


OTHER = Cause(
    key="other",
    title="Another reason",
    mend="Read the reason, and the invoice's story with reconciler show. Mend it, then replay.",
)

_AFTER = "; the last: "
_MOST_READ = 600  # characters: it holds the first fault, whatever names are in it

# In their order: the first pattern that is found at the reason's start is the cause.
_TABLE: tuple[tuple[str, Cause], ...] = (
    (
        r"(GET|POST|PUT) /.*?: \d{3}\b",
        Cause(
            key="platform_refused",
            title="The platform refused a request",
            mend="The reason quotes what the platform said. Correct that there (a deleted plan, a"
            " closed account, a right that the token lacks), then replay.",
        ),
    ),
    (
        r"entry \d+ of \S+ cannot be read",
        Cause(
            key="unreadable_record",
            title="The journal's record cannot be read",
            mend="Let reconciler journal verify name what is broken, and restore it from a backup"
            " as docs/journal.md says; then replay. Where it cannot be restored, settle the invoice"
            " on the platform and close it here.",
        ),
    ),
    (
        r'component ".*?" has no source',
        Cause(
            key="unmapped_component",
            title="A component has no source",
            mend="Map the component under components in the config; no restart is needed."
            " Then release all invoices of this cause.",
        ),
    ),
    (
        r'source "[^"]*" does not know ',
        Cause(
            key="unknown_subject",
            title="A source does not know the customer",
            mend='Add the subject to the source, or set unknown_subject = "zero" for the component'
            " where an unknown one means that nothing was used. Then replay.",
        ),
    ),
    (
        r'source "[^"]*" has usage only up to ',
        Cause(
            key="source_behind",
            title="A source is behind, long after the period's end",
            mend="Mend what feeds the source. When its watermark has passed the period's end,"
            " replay.",
        ),
    ),
    (
        r'source "[^"]*"(: | gave | crashed)',
        Cause(
            key="source_invalid",
            title="A source answered something that is not a count",
            mend="The reason names the place. Correct the data or the source's settings; try it"
            " with reconciler count. Then replay.",
        ),
    ),
    (
        r'"[^"]*" was counted as [^;"]*: a fraction;',
        Cause(
            key="fraction",
            title="A count has a fraction",
            mend="Decide with accounting how it is billed, and set rounding (or divide_by) for the"
            " component. Then replay.",
        ),
    ),
    (
        r'"[^"]*" was counted as [^;"]*, above its max_quantity ',
        Cause(
            key="max_quantity",
            title="A count is above the component's max_quantity",
            mend="Look whether the customer really used so much. If so, raise max_quantity;"
            " if not, correct the usage. Then replay.",
        ),
    ),
    (
        r'"[^"]*" was counted as ',
        Cause(
            key="impossible_count",
            title="A count is negative, not exact or beyond any meter",
            mend="Correct the usage in the source, or its settings. Then replay.",
        ),
    ),
    (
        r'"[^"]*" ([^;"]* overlaps [^;"]*, billed on |[^;"]* is billed on |is on it twice )',
        Cause(
            key="billed_twice",
            title="The same usage is on two invoices, or twice on one",
            mend="Compare with the invoice that the reason names. Void the wrong one on the"
            " platform, or issue this one by hand and close it here.",
        ),
    ),
    (
        r'"[^"]*" \(.*?\) (joined|left) the invoice after it was counted',
        Cause(
            key="charges_changed",
            title="Usage charges joined or left after the count",
            mend="Look who changed the invoice. While nothing was written, replay it with"
            " --recount; otherwise settle it on the platform and close it here.",
        ),
    ),
    (
        r'"[^"]*" \(.*?\) (names no |is counted by [^;"]*, and [^;"]* has no metadata )',
        Cause(
            key="no_subject",
            title="A charge does not say whose usage it is",
            mend="Set the metadata that the reason names on the platform, or correct the"
            " component's subject in the config. Then replay.",
        ),
    ),
    (
        r'"[^"]*" \(.*?\): ',
        Cause(
            key="bad_period",
            title="A charge's period cannot be read",
            mend="Look at the charge on the platform. What has no period cannot be counted:"
            " correct it there and replay, or settle it by hand and close it here.",
        ),
    ),
    (
        r"the platform does not know this invoice",
        Cause(
            key="not_on_platform",
            title="The platform does not know the invoice",
            mend="Check that base_url and token are of the account that sends the notifications."
            " If the invoice was deleted there, close it here.",
        ),
    ),
    (
        r"there is no platform ",
        Cause(
            key="no_platform",
            title="Its platform is not in the config any more",
            mend="Add the platform to the config again under its old name, then replay; or settle"
            " the invoice by hand and close it here.",
        ),
    ),
    (
        r"we issued it at .* and it is Pending again",
        Cause(
            key="taken_back",
            title="It was issued by us, and somebody took it back",
            mend="Ask who took it back and why. It is never issued a second time by itself:"
            " settle it by hand on the platform, then close it here.",
        ),
    ),
    (
        r"it is .*, but not as we counted it",
        Cause(
            key="billed_otherwise",
            title="It is issued, but not with our counts",
            mend="The customer may be charged wrongly: compare at once what is billed with what"
            " was counted (reconciler show). Credit or correct it by hand, then close it here.",
        ),
    ),
    (
        r"(it is|its versionNumber is) .*, while it awaited our count",
        Cause(
            key="settled_elsewhere",
            title="Somebody else issued or recalculated it while it awaited our count",
            mend="Compare the quantities on the platform with reconciler preview or count."
            " If they are right, close it here; if not, correct them by hand first.",
        ),
    ),
    (
        r"its state .* is not known to this program",
        Cause(
            key="unknown_state",
            title="The platform shows a state this program does not know",
            mend="Look at the invoice on the platform. Settle it by hand and close it here, or"
            " upgrade this program and replay.",
        ),
    ),
    (
        r"it was begun, and the mode is observe since",
        Cause(
            key="observe_mode",
            title="It was begun, and the mode is observe since",
            mend='Set mode = "write" and replay, or settle it by hand and close it here.',
        ),
    ),
    (
        r"exhausted: its workers died",
        Cause(
            key="workers_died",
            title="Every worker that took it died",
            mend="Look in the workers' logs and the system's for what ended them (memory, a job's"
            " time limit). Mend it, then replay this one alone and watch it.",
        ),
    ),
    (
        rf"exhausted .*{_AFTER}unexpected .* in the program",
        Cause(
            key="program_defect",
            title="The program failed at it",
            mend="The worker's log has the traceback: report it. After an upgrade, replay.",
        ),
    ),
    (
        rf"exhausted .*{_AFTER}.*the platform refused our token",
        Cause(
            key="token_refused",
            title="Attempts used up: the platform refused our token",
            mend="Give a valid token by the environment and restart the workers. reconciler doctor"
            " says when it is accepted. Then release all invoices of this cause.",
        ),
    ),
    (
        rf'exhausted .*{_AFTER}source "[^"]*": ',
        Cause(
            key="source_unreachable",
            title="Attempts used up: a source did not answer",
            mend="Look at the source; reconciler doctor says when it answers. Then release all"
            " invoices of this cause.",
        ),
    ),
    (
        r"exhausted ",
        Cause(
            key="platform_unreachable",
            title="Attempts used up: the platform did not do what was asked",
            mend="Look at the platform's status and the reason; reconciler doctor says when it"
            " answers. Then release all invoices of this cause.",
        ),
    ),
    (
        r"(the answer |asked |an invoice in the list |the metadata of "
        r"|more than \d+ pages |\S+ has no (text|number|whole number) |an answer has no )",
        Cause(
            key="platform_answer",
            title="The platform's answer cannot be what it claims to be",
            mend="Look at the invoice on the platform, and whether base_url names its API and not"
            " a proxy's page. If both are right, its API has changed: report it. Then replay.",
        ),
    ),
)

# Why an invoice waits or is skipped; of these no person has to do anything.
_QUIET = (
    (r"the platform does not know it yet", "not_found_yet"),
    (r'the period of ".*" is not over', "period_end"),
    (r'source "[^"]*" has usage only up to ', "source_behind"),
    (r"it has no usage charge", "no_usage_charge"),
    (r"a write got no answer ", "write_unanswered"),
    (r"we issued it, and the platform shows it pending yet", "issue_unseen"),
    (r"it is voided", "voided"),
    (r"it is already ", "not_pending"),
    (r"its type is ", "type"),
    (r"its versionNumber is ", "version"),
)

_PATTERNS = tuple((re.compile(pattern), cause) for pattern, cause in _TABLE)

CAUSES = (*(cause for _, cause in _TABLE), OTHER)
_BY_KEY = {cause.key: cause for cause in CAUSES}


def cause_of(reason: str) -> Cause:
    """Return the cause of a reason to hold; of several faults in it, the first one's."""
    start = reason[:_MOST_READ]
    return next((cause for pattern, cause in _PATTERNS if pattern.match(start)), OTHER)


def quiet_cause_of(reason: str) -> str:
    """Return the key of why an invoice waits or is skipped."""
    return next((key for pattern, key in _QUIET if re.match(pattern, reason)), OTHER.key)


def cause_named(key: str) -> Cause:
    """Return the cause of this key; OTHER, where another version of the program stored it."""
    return _BY_KEY.get(key, OTHER)
