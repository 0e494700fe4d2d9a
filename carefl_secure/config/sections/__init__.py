"""The sections of the configuration: one frozen model each."""
