"""What a scan found, for whoever reads it: a terminal, a browser, a pipeline, a model card, a program.

Every report is a pure function of a :class:`~calibration.scan.base.ScanResult`; none reads or writes a file.
Names of classes and paths come from outside and are escaped in each, as its form asks for.
"""

from calibration.scan.reports.as_html import to_html
from calibration.scan.reports.as_json import to_json
from calibration.scan.reports.as_model_card import to_model_card
from calibration.scan.reports.as_sarif import to_sarif
from calibration.scan.reports.as_text import to_text
from calibration.scan.reports.folders import trigger_folders

__all__ = ["to_html", "to_json", "to_model_card", "to_sarif", "to_text", "trigger_folders"]
