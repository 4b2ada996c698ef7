"""What a session of MySQL or MariaDB needs set, and which of their errors pass."""

from __future__ import annotations

import math
from typing import Any

DIALECTS = ("mysql", "mariadb")
# A collation of each that tells every two different texts apart, also by spaces at their end.
COLLATIONS = {"mysql": "utf8mb4_0900_bin", "mariadb": "utf8mb4_nopad_bin"}
ON_CONNECT = (
    "SET time_zone = '+00:00'",  # which TIMESTAMP follows
    "SET SESSION TRANSACTION READ ONLY",
    "SET SESSION sql_mode = REPLACE(@@sql_mode, 'PAD_CHAR_TO_FULL_LENGTH', '')",
)

# The server's error codes that a later try can get past.
_PASSING = {
    *(1021, 1037, 1038, 1041),  # no room on the disk or in memory
    *(1040, 1129, 1203, 1226, 1637),  # too many at once
    *(
        1044,
        1045,
        1049,
        1130,
        1698,
    ),  # not let in, as while a password is changed or a server set up
    *(1047, 1053, 3032, 3168),  # starting, shutting down, or offline
    *(1158, 1159, 1160, 1161),  # the network
    *(1205, 1213, 1412),  # locks, and a table that was altered while it was read
    *(1317, 1927, 1969, 3024, 3169, 4031),  # stopped, or out of time
}
# And whole thousands of them: the driver's own, of connecting and waiting; a proxy's.
_PASSING_THOUSANDS = {2, 9}


def bound(dialect_name: str, seconds: float) -> str:
    """Return what makes the server give up each statement that follows after so many seconds."""
    if dialect_name == "mariadb":
        return f"SET max_statement_time = {max(seconds, 0.001):.3f}"
    return f"SET max_execution_time = {math.ceil(seconds * 1000)}"


def is_passing(error: BaseException) -> bool:
    """Tell whether an error can be gone at a later try; a driver may have no code for it."""
    code: Any = error.args[0] if error.args else None
    if not isinstance(code, int):
        return True
    return code in _PASSING or code // 1000 in _PASSING_THOUSANDS
