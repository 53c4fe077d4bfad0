"""Errors that carry a sentence for the user and a hint how to mend them."""

from __future__ import annotations


class S2DCError(Exception):
    """Something the user can mend; shown as one sentence, never as a traceback.

    Parameters
    ----------
    sentence : str
        What went wrong, naming the file, layer or setting.
    hint : str, optional
        What to do about it.
    """

    exit_code = 2

    def __init__(self, sentence: str, hint: str = "") -> None:
        # A loader process hands an error on as its text with a traceback; the user gets the text.
        if sentence.startswith("Caught ") and "DataLoader worker" in sentence:
            sentence = sentence.strip().rsplit("\n", 1)[-1].partition(": ")[2] or sentence
        self.sentence = sentence
        self.hint = hint
        super().__init__(f"{sentence} {hint}".strip())


SCAN_ERRORS = (S2DCError, OSError, EOFError, MemoryError)
"""What a scan that cannot be used raises; work on others goes on."""


def reason_of(error: BaseException) -> str:
    """Say in one line why something failed."""
    return " ".join(str(error).split()) or type(error).__name__


class VolumeError(S2DCError):
    """A scan cannot be read, written or used."""


class CheckpointError(S2DCError):
    """Weights cannot be read or do not fit the network."""


class ConfigurationError(S2DCError):
    """A setting is unknown, missing or contradicts another."""
