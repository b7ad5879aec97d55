"""Speed and memory of what seqjax computes, each table made by one command."""
