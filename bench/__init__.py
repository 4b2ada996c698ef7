"""Measurements as programs: each starts what it needs, on the loopback, and prints its figures."""
