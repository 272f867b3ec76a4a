"""What can be known before a run is paid for: a new task's folder, data, template, reward, memory, machine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covey.preflight.audit import Audit, audit_reward
    from covey.preflight.check import check_run
    from covey.preflight.finding import Finding
    from covey.preflight.template import TemplateReport, lint_template

__all__ = ["Audit", "Finding", "TemplateReport", "audit_reward", "check_run", "lint_template"]

_LAZY = {
    "Audit": "audit",
    "Finding": "finding",
    "TemplateReport": "template",
    "audit_reward": "audit",
    "check_run": "check",
    "lint_template": "template",
}


def __getattr__(name: str) -> Any:
    """Load a part when it is named: `covey new` needs none of them."""
    if name not in _LAZY:
        raise AttributeError(f"module 'covey.preflight' has no attribute {name!r}")
    return getattr(import_module(f"covey.preflight.{_LAZY[name]}"), name)
