"""Every error the program raises on purpose, by what to do about it.

::

    ReconcilerError
    ├── TransientError            try again later; nothing about this invoice is wrong
    │   ├── PlatformUnavailable       a read without an answer, a write that was surely not taken
    │   │   └── CredentialsRefused        our token was refused; true of every invoice
    │   ├── OutcomeUnknown            a write was sent and its answer was lost: read before writing
    │   ├── SourceUnavailable         a usage source did not answer
    │   ├── JournalUnavailable        the journal cannot be read or written
    │   └── QueueUnavailable          Redis did not take a job; the sweep rings again
    ├── PermanentError            trying again cannot help; a person must look
    │   ├── PlatformRefused           the platform understood the request and said no
    │   ├── PlatformAnswerInvalid     the platform's answer cannot be what it claims to be
    │   ├── SourceInvalid             a source answered something that is not a count
    │   └── RecordInvalid             the journal's record of an invoice cannot be read
    ├── DeliveryRejected          a webhook request is not a notification we can read
    ├── ConfigError               the configuration is wrong; carries every complaint at once
    ├── LeaseLost                 another worker owns the invoice now; stop before the next write
    └── Stopped                   this worker was asked to end; the next one goes on
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


class ReconcilerError(Exception):
    """The root; its text is one line, safe to show to anybody."""


class TransientError(ReconcilerError):
    """Trying again later can help; `retry_after` is the wait the other side asked for."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PlatformUnavailable(TransientError):
    """The billing platform did not answer, or not with an answer about our request."""


class CredentialsRefused(PlatformUnavailable):
    """The platform refused our credentials: nothing is wrong with the invoice."""


class OutcomeUnknown(TransientError):
    """A write was sent and no answer came back: it may have happened."""


class SourceUnavailable(TransientError):
    """A usage source could not be reached in time."""


class JournalUnavailable(TransientError):
    """The journal could not be read or written."""


class QueueUnavailable(TransientError):
    """Redis did not take a job; the journal knows that it is due."""


class PermanentError(ReconcilerError):
    """Trying again cannot help: the invoice is held for a person."""


class PlatformRefused(PermanentError):
    """The platform refused a request and named why."""


class PlatformAnswerInvalid(PermanentError):
    """The platform's answer contradicts what was asked or what it must contain."""


class SourceInvalid(PermanentError):
    """A usage source answered, and the answer is not a usable count."""


class RecordInvalid(PermanentError):
    """An entry of an invoice cannot be read: it was changed, or another version wrote it."""


class DeliveryRejected(ReconcilerError):
    """A webhook request cannot be read as a notification; nothing of it was stored."""


class ConfigError(ReconcilerError):
    """The configuration is wrong; `complaints` lists everything found, one line each."""

    def __init__(self, complaints: Sequence[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = tuple(complaints)


class LeaseLost(ReconcilerError):
    """The claim's lease ran out and another worker took the invoice."""


class Stopped(ReconcilerError):
    """This worker was asked to end between two steps; nothing is wrong."""
