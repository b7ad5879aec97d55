"""Every form of every operator is the same function: one suite, one table."""
