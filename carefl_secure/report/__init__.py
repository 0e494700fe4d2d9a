"""One run folder in; a page, its data, a model card and a registry entry out."""

from carefl_secure.report.build import refuse_void, refuse_without_adapter, write_evaluation_page, write_report
from carefl_secure.report.schema import FORMAT, Report

__all__ = ["FORMAT", "Report", "refuse_void", "refuse_without_adapter", "write_evaluation_page", "write_report"]
