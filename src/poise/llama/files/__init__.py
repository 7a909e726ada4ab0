"""Model files as files: their headers, formats, digests and sizes. No C code."""
