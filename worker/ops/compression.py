"""One invoice's page is sent compressed: with many usage charges it is long."""

from __future__ import annotations

import gzip

from flask import Response, request

ENDPOINT = "ops.invoice"  # the other pages repeat what was asked: their lengths would tell (BREACH)


def compressed(response: Response) -> Response:
    """Compress the page where the browser takes that; of its request it repeats nothing."""
    if request.endpoint != ENDPOINT or response.status_code != 200:
        return response
    response.vary.add("Accept-Encoding")
    if request.accept_encodings.quality("gzip") > 0:
        response.set_data(gzip.compress(response.get_data(), compresslevel=6))
        response.content_encoding = "gzip"
    return response
