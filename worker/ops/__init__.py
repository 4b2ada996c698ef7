"""The operators' pages: every invoice, and what people may do with it, in a browser."""
