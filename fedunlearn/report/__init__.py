"""What a comparison found: the HTML report and tables for docs and papers."""

from fedunlearn.report.columns import BRIEF
from fedunlearn.report.comparison import TextTable, tabulate
from fedunlearn.report.controls import against_control
from fedunlearn.report.gap_table import gap_table
from fedunlearn.report.gaps import average_gap, retrain_to_retrain
from fedunlearn.report.page import ReportInput, render_report
from fedunlearn.report.summary import (
    RETRAIN,
    TRAINED,
    Estimate,
    MethodSummary,
    estimate,
    format_estimate,
    gap_to_retrain,
    seed_distance,
    summarise,
)
from fedunlearn.report.tables import latex_table, markdown_table

__all__ = [
    "BRIEF",
    "RETRAIN",
    "TRAINED",
    "Estimate",
    "MethodSummary",
    "ReportInput",
    "TextTable",
    "against_control",
    "average_gap",
    "estimate",
    "format_estimate",
    "gap_table",
    "gap_to_retrain",
    "latex_table",
    "markdown_table",
    "render_report",
    "retrain_to_retrain",
    "seed_distance",
    "summarise",
    "tabulate",
]
