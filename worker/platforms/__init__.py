"""Billing platforms, one module each; nothing outside a module knows that platform's words."""
