"""Absl mains, configs and reports: the studies people run."""
