"""One run folder in; a page, its data, a model card and a registry entry out."""

from carefl_secure.report.schema import FORMAT, Report
from carefl_secure.report.write import refuse_void, write_report

__all__ = ["FORMAT", "Report", "refuse_void", "write_report"]
