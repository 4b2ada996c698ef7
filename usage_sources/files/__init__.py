"""Usage counted in Parquet, CSV and JSON files with a row per event, by DuckDB."""

from usage_sources.files.source import FilesSource

__all__ = ["FilesSource"]
