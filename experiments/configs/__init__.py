"""Config files: each defines get_config() and says what to expect."""
