"""Errors that reading data raises, in a module without imports: the process that reads .mat files needs no torch."""


class DataError(ValueError):
    """Data that cannot be used; the message names the value and what was expected."""


class DataUnavailable(DataError):
    """A standard data set that is nowhere on disk and could not be, or never is, downloaded."""


class WriteError(OSError):
    """A run's file could not be written; the message names it, why, and the checkpoint that is kept."""
