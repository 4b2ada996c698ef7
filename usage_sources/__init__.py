"""Places usage is counted; each source stands alone behind the port `UsageSource`."""
