"""Reconciles pending invoices: counts their usage, writes it, issues them once."""

__version__ = "0.1.0"
