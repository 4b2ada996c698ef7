"""A strict BillForward look-alike over HTTP, to try, demonstrate and test a client against.

It answers as BillForward does (shapes recorded 2026; rules from BillForward's knowledge base and
its published schemas) and remembers every rule that a client breaks: `python -m sandbox` runs it
alone, `sandbox.process.running_sandbox` in a child process, `sandbox.server.serving` in this one.
Nothing happens on import.

BillForward is silent on some things. What the sandbox does there, and the switch, if any:

- A recalculated charge gets a new version under the same id. Its invoice's version stays, unless
  `charge_recalculation_bumps_invoice`.
- A recalculated invoice gets a new version; a change of state alone (payment, a colleague) does
  not make one. The state it ends in is notified, unless `notify_on_recalculation` is off.
- An invoice's cost changes at its own recalculation only, unless `cost_follows_charges`.
- Writing to an issued invoice's charge is refused with 412 PreconditionFailed and recorded as a
  write after issue; issuing it again, likewise as a second issue. After a colleague un-issued it,
  it may be issued again only with `reissue_allowed`. Any other write on a Voided or Paid invoice
  is refused with 409 InconsistentState, and is a violation unless `record_state_conflicts` is off.
  A dry run is refused in the same way and never recorded.
- An unknown id is 404 NoSuchEntity, or 200 without results with `unknown_id_is_empty`.
- `include_retired` left out means false, or true with `include_retired_by_default`.
- Any page size is granted, or at most `max_records`. A page holds at least one record.
- No default of a required field is assumed: `newState`, `onlyInvoiceAssociatedCharges`, `dryRun`
  and `recalculationBehaviour` must be sent. So must `recalculateInvoices` in a batch, and with it
  `invoiceState`. `onlyInvoiceAssociatedCharges` false is refused.
- A batch is all or nothing, unless `batch_is_atomic` is off: then the charges before the bad one
  are written, and no invoice is recalculated.
- A quantity outside all tiers is a ValidationError, or with `strict_quantities` off priced at the
  nearest tier; a quantity of 0 that no tier covers costs nothing. A graduated fixed tier is
  charged once as soon as the quantity reaches it. `tiered_volume` prices the whole quantity at the
  tier it falls into. `flat` is one tier.
- A subscription's first invoice has no usage charge, or with `first_invoice_has_usage` one over a
  zero-length period. Usage values start each period at the component's default quantity.
- A FinalArrears invoice and its charges cover [currentPeriodStart, cancellation).
- An issued invoice stays Unpaid, or is paid after `pay_after_seconds` of the sandbox's clock.
- A charge follows its invoice: Pending, then AwaitingPayment, then Paid; Voided with it.
- Webhooks: any 2xx within `notification_timeout_seconds` is success; else it is tried again after
  each of `redelivery_seconds`. With ackEnabled it is sent again until acknowledged, at most
  `ack_attempts` times. `notification_copies` sends each several times, `reorder_window`,
  `reorder_seed` and `reorder_hold_seconds` shuffle them. A webhook needs no verification;
  what it is listed with can be set, and changes nothing else.
- There is no rate limit; a `rate_limit` fault answers 429. `latency_seconds` slows every answer.
- The header Date tells the sandbox's clock.
- The token goes in the Authorization header only: in the query it would end up in logs.
- Path tricks, unknown paths, methods, parameters and fields, a key given twice, and a body that is
  not JSON are violations, each answered with a 4xx and an error body.
- What a TimeResponse holds: subscriptionID, currentTime and the ids of the invoices raised.
- Not there: tax, discounts, credit, coupons, amendments, quotes, usage sessions, paths with dates.
"""
