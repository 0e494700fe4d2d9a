"""From a configuration to a run and back."""
