"""Every error that Sinotherm raises on purpose.

.. code-block:: text

    SinothermError
    ├── SettingsError        a pipeline, stage or setting that is unknown or out of range
    ├── DataError            what was received cannot be reconstructed
    │   ├── HeaderError      the scan header is missing, invalid or lacks a needed fact
    │   ├── SpokeError       a readout that does not fit the scan
    │   └── FileFormatError  a file that is not MRD, or is damaged
    ├── WireError            the byte stream or the peer
    │   ├── ProtocolError    bytes that are not the protocol, or exceed a bound
    │   ├── PeerError        the peer reported a failure
    │   └── PeerGoneError         the peer vanished or stayed silent too long
    ├── BaselineError        no baseline, or one that does not fit
    ├── WeightsError         network weights that are missing, altered or do not fit
    └── OverloadError        frames arrive faster than they can be made, and the policy says fail

Each message gives the value, the bound and what to do.
"""

__all__ = [
    "BaselineError",
    "DataError",
    "FileFormatError",
    "HeaderError",
    "OverloadError",
    "PeerError",
    "PeerGoneError",
    "ProtocolError",
    "SettingsError",
    "SinothermError",
    "SpokeError",
    "WeightsError",
    "WireError",
]


class SinothermError(Exception):
    """Base of every error raised on purpose."""


class SettingsError(SinothermError):
    """A pipeline, stage or setting that is unknown or out of range."""


class DataError(SinothermError):
    """What was received cannot be reconstructed."""


class HeaderError(DataError):
    """The scan header is missing, invalid or lacks a needed fact."""


class SpokeError(DataError):
    """A readout that does not fit the scan."""


class FileFormatError(DataError):
    """A file that is not MRD, or is damaged."""


class WireError(SinothermError):
    """The byte stream or the peer."""


class ProtocolError(WireError):
    """Bytes that are not the protocol, or exceed a bound."""


class PeerError(WireError):
    """The peer reported a failure."""


class PeerGoneError(WireError):
    """The peer vanished or stayed silent too long."""


class BaselineError(SinothermError):
    """There is no baseline, or the one at hand does not fit this scan."""


class WeightsError(SinothermError):
    """Network weights that are missing, altered or do not fit."""


class OverloadError(SinothermError):
    """Frames arrive faster than they can be made, and the policy says to fail."""
