"""From a report to pages, plots and cards."""
