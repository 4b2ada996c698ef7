"""A proof by repetition: seeded crashes and faults at every step, and a check of every outcome.

`python -m proof --seeds 1000` runs the real reconcile code against the sandbox over HTTP, a real
journal and a real Redis, in child processes that are killed at named steps, while answers are
dropped, writes commit late, workers race, notifications come twice or never, Redis is wiped and
the disk is full. After each seed the sandbox and the journal are read and compared with an
independent count of the usage.
"""
