"""What can be wrong with a run of PTX; each message names the instruction, its line and a thread."""


class PtxError(Exception):
    """A run that a device would not carry out as meant."""


class UnsupportedError(PtxError):
    """Text that the interpreter does not know; nothing is ever skipped."""


class OutOfBoundsError(PtxError):
    """An access outside the memory that was passed."""


class MisalignedError(PtxError):
    """An address that its access does not divide."""


class UnwrittenError(PtxError):
    """A read of memory or of a register that nobody wrote."""


class RaceError(PtxError):
    """Two threads touch a byte, at least one writes, and no barrier orders them."""


class DivergenceError(PtxError):
    """Threads that an instruction waits for do not reach it."""
