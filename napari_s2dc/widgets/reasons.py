"""Controls that say why they cannot be used."""

from __future__ import annotations

from qtpy.QtWidgets import QWidget

__all__ = ["allow"]

_USUAL = "s2dc_usual_tooltip"


def allow(control: QWidget, problem: str) -> None:
    """Enable a control, or disable it with the problem as tooltip instead of its usual one.

    Parameters
    ----------
    control : QWidget
        Its tooltip at the first call is the usual one.
    problem : str
        Why it cannot be used; empty when it can.
    """
    if control.property(_USUAL) is None:
        control.setProperty(_USUAL, control.toolTip())
    control.setEnabled(not problem)
    control.setToolTip(problem or control.property(_USUAL))
