"""Composed functions on strings: which skills compose when only single ones were taught (arXiv 2509.25123)."""

from __future__ import annotations

from covey.tasks.compose.task import Compose

__all__ = ["Compose"]
