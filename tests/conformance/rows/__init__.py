"""The table's rows, one file a family."""
