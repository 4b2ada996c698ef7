"""Reconciles pending invoices: counts their usage, writes it, issues them once."""
