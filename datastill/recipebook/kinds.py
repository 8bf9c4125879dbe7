"""The kinds of data that recipes name."""

from __future__ import annotations

EVERY = ("image", "text", "graph", "graphs", "interactions")
