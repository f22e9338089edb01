"""How fast, beside whom, on what: the same work by several engines in one run."""
