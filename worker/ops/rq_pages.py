"""The pages of an installed rq-dashboard, made safe on their way out."""

from __future__ import annotations

import re
import secrets
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flask import Response, g, render_template, url_for
from markupsafe import Markup

from worker.domain import InvoiceKey
from worker.ops.access import access, person
from worker.ops.board import board
from worker.ops.rq_look import Json

POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'self';"
    " style-src-attr 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# The pages make their rows with templates that are compiled by eval. What stands in a row cannot
# run: it does not know the nonce.
_SCRIPTS = "; script-src 'nonce-{}' 'unsafe-eval'"
_ESCAPED = re.compile(r"<%=\s*\$\('<div/>'\)\.text\((.*?)\)\.html\(\)\s*%>")
_VERSION = "0.9."
_POLL_MILLISECONDS = 2500


def installed() -> Path | None:
    """Find the package without running any of it; None: there is none whose pages we know."""
    try:
        known = version("rq-dashboard").startswith(_VERSION)
    except PackageNotFoundError:
        return None
    found = find_spec("rq_dashboard")
    return Path(found.origin).parent if known and found and found.origin else None


def rendered(name: str, *, about: InvoiceKey | None = None, **shown: Any) -> str:
    """Render one of the package's pages, with a link to the invoice that it is about."""
    html = render_template(
        f"rq_dashboard/{name}.html",
        current_instance=0,
        instance_list=[board().desk.doorbell.place],
        rq_url_prefix=url_for(".queues_overview"),
        rq_dashboard_version=version("rq-dashboard"),
        rq_version=version("rq"),
        active_tab=name,
        enable_delete=False,
        poll_interval=_POLL_MILLISECONDS,
        **shown,
    )
    return _with_ours(_escaping(html), about)


def name_scripts(response: Response) -> Response:
    """Let the scripts run that a page was sent with, and no others."""
    if nonce := g.get("rq_nonce"):
        response.headers["Content-Security-Policy"] += _SCRIPTS.format(nonce)
    return response


def favicon(error: Exception, endpoint: str, values: Json) -> str:
    """Make the one link of the package's pages that names its host's files."""
    if endpoint != "static":
        raise error
    return url_for("rq_dashboard.static", filename=values["filename"])


def _escaping(html: str) -> str:
    """Have the page's row templates escape every value, each once."""
    return _ESCAPED.sub(r"<%- \1 %>", html).replace("<%=", "<%-")


def _with_ours(html: str, about: InvoiceKey | None) -> str:
    """Name the page's own scripts with the nonce, and add our note, style and script."""
    g.rq_nonce = nonce = secrets.token_urlsafe(16)
    html = html.replace("<script src=", f'<script nonce="{nonce}" src=')
    html = html.replace('<script type="text/javascript">', f'<script nonce="{nonce}">')
    head = Markup(
        '<meta name="ops-token" content="{}"><link rel="stylesheet" href="{}">\n</head>'
    ).format(access().token(), url_for("ops.static", filename="rq.css"))
    top = Markup(
        '<body class="ops-{}">\n<p class="ops-note"><a href="{}">Operators\' pages</a>{}'
        " RQ only wakes the workers: requeueing a job replays its invoice through the journal."
        '</p>\n<noscript><p class="ops-note">These pages need JavaScript. <a href="{}">The list of'
        " invoices</a> needs none, and can do all that they can.</p></noscript>"
        '\n<p id="ops-told" role="status" hidden></p>'
    ).format(person().role.value, url_for("ops.overview"), _link_to(about), url_for("ops.invoices"))
    end = Markup('<script nonce="{}" src="{}"></script>\n</body>').format(
        nonce, url_for("ops.static", filename="rq.js")
    )
    for mark, added in (("</head>", head), ("<body>", top), ("</body>", end)):
        html = html.replace(mark, str(added), 1)
    return html


def _link_to(about: InvoiceKey | None) -> Markup:
    if about is None:
        return Markup(".")
    url = url_for("ops.invoice", platform=about.platform, invoice_id=about.invoice_id)
    return Markup(' · <a href="{}">{}</a>.').format(url, about.invoice_id)
