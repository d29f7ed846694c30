"""The statistics report of a soma catalogue: one page with plots, and its numbers as CSV and Parquet beside it."""

from cloudseg.somas.report.numbers import Numbers, gather
from cloudseg.somas.report.page import page
from cloudseg.somas.report.tables import write_report

__all__ = ["Numbers", "gather", "page", "write_report"]
