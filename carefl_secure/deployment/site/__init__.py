"""The agent of a site: what it accepts, spends and runs."""
