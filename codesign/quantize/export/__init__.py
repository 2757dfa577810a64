"""Results of quantizing in the formats of other programs."""

from codesign.quantize.export.writer import FORMATS, ExportReport, export

__all__ = ["FORMATS", "ExportReport", "export"]
