"""The MRD header of a scan, read tolerantly and turned into SI.

The schema's own parser refuses headers that scanners and converters really send (a
``<waveformInformation>`` without user parameters, for one), so only the parts that are needed here
are read, by local name, in any namespace.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

from sinotherm.core.documents import parse_document, without_nul
from sinotherm.core.scan import EncodingSpace, ScanHeader
from sinotherm.errors import DataError, HeaderError

__all__ = ["RADIAL_TRAJECTORIES", "scan_header"]

RADIAL_TRAJECTORIES: Final = ("radial", "goldenangle")
"""Kinds of trajectory that are radial; ``other`` and an empty one are decided by the readouts."""

_LARGEST_MATRIX: Final = 4096
_SMALLEST_FOV_MM: Final = 0.1
_LARGEST_FOV_MM: Final = 10_000.0
_LARGEST_COUNT: Final = 65_535
_WAVEFORM_IDS: Final = {"ecg": 0, "pulse": 1, "respiratory": 2, "trigger": 3}
_ASK: Final = "correct the header or the converter that wrote it"


def scan_header(xml: bytes | str) -> ScanHeader:
    """Return the facts of an MRD header.

    Parameters
    ----------
    xml
        The header as it came; a trailing NUL (FIRE) is dropped. Of several encodings the first
        radial one counts, or the first where none says that it is radial.

    Raises
    ------
    HeaderError
        The header is empty, not XML, not MRD, or a fact in it is missing or impossible.
    """
    raw = xml.encode() if isinstance(xml, str) else bytes(xml)
    raw = without_nul(raw.rstrip(b"\0 \r\n\t"))
    if not raw:
        raise HeaderError("the scan header is empty: an MRD header (XML) must come before the data.")
    try:
        root = parse_document(raw, "the scan header")
    except DataError as error:
        raise HeaderError(f"{str(error)[:-1]}; {_ASK}.") from None
    if _name(root) != "ismrmrdHeader":
        raise HeaderError(f"the scan header begins with <{_name(root)}>: an MRD header begins with <ismrmrdHeader>.")

    encodings = list(_all(root, "encoding"))
    if not encodings:
        raise HeaderError(f"the scan header has no <encoding>, so matrix and field of view are unknown; {_ASK}.")
    kinds = [_text(encoding, "trajectory").lower() for encoding in encodings]
    chosen = next((index for index, kind in enumerate(kinds) if kind in RADIAL_TRAJECTORIES), 0)
    encoding = encodings[chosen]
    encoded = _space(encoding, "encodedSpace")
    if encoded is None:
        raise HeaderError(f"encoding {chosen} of the scan header has no <encodedSpace>; {_ASK}.")
    n_spokes = _limit(encoding, "kspace_encoding_step_1")
    n_partitions, acquired, offset = _partitions(encoding, encoded.matrix[2])
    return ScanHeader(
        encoded=encoded,
        # A silent header means that the images are made as they are encoded.
        recon=_space(encoding, "reconSpace") or encoded,
        trajectory=kinds[chosen],
        encoding_space=chosen,
        n_coils=_count(root, "acquisitionSystemInformation/receiverChannels"),
        relative_noise_bandwidth=_positive(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth"),
        echo_times_s=_echo_times(root),
        repetition_time_s=_milliseconds(root, "sequenceParameters/TR"),
        larmor_hz=_positive(root, "experimentalConditions/H1resonanceFrequency_Hz"),
        field_strength_t=_positive(root, "acquisitionSystemInformation/systemFieldStrength_T"),
        n_slices=_limit(encoding, "slice") or 1,
        n_partitions=n_partitions,
        acquired_partitions=acquired,
        partition_offset=offset,
        # A limit of one spoke is what converters write that know none.
        spokes_per_frame=n_spokes if n_spokes is not None and n_spokes > 1 else None,
        user_parameters=dict(_user_parameters(root)),
        waveforms=tuple(
            _WAVEFORM_IDS[kind]
            for element in _all(root, "waveformInformation")
            if (kind := _text(element, "waveformType").lower()) in _WAVEFORM_IDS
        ),
        protocol=_text(root, "measurementInformation/protocolName"),
        measurement_id=_text(root, "measurementInformation/measurementID"),
        xml=raw.decode("utf-8", errors="replace"),
    )


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _all(element: Any, path: str) -> Iterator[Any]:
    """Yield the descendants at ``path`` (local names, separated by slashes)."""
    first, _, rest = path.partition("/")
    for child in element:
        if _name(child) == first:
            if rest:
                yield from _all(child, rest)
            else:
                yield child


def _text(element: Any, path: str) -> str:
    found = next(_all(element, path), None)
    return "" if found is None or found.text is None else str(found.text).strip()


def _number(text: str, path: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HeaderError(f"{path} of the scan header is {text[:40]!r}: it must be a finite number; {_ASK}.")
    return value


def _numbers(element: Any, path: str) -> list[float]:
    return [_number(text, path) for found in _all(element, path) if (text := (found.text or "").strip())]


def _positive(element: Any, path: str) -> float | None:
    """Return a quantity, or ``None`` where the header is silent; a zero is how converters say nothing."""
    value = next(iter(_numbers(element, path)), 0.0)
    return value if value > 0.0 else None


def _echo_times(root: Any) -> tuple[float, ...]:
    """Return the echo times by contrast, s; 0 where one is not stated, so that the others keep their place."""
    texts = [(found.text or "").strip() or "0" for found in _all(root, "sequenceParameters/TE")]
    times = [max(0.0, 1e-3 * _number(text, "sequenceParameters/TE")) for text in texts]
    while times and not times[-1]:
        times.pop()
    return tuple(times)


def _milliseconds(element: Any, path: str) -> float | None:
    value = _positive(element, path)
    return None if value is None else 1e-3 * value


def _count(element: Any, path: str) -> int | None:
    value = _positive(element, path)
    if value is None:
        return None
    if value > _LARGEST_COUNT or value != int(value):
        raise HeaderError(f"{path} of the scan header is {value:g}: it must be a count up to {_LARGEST_COUNT}; {_ASK}.")
    return int(value)


def _space(encoding: Any, name: str) -> EncodingSpace | None:
    element = next(_all(encoding, name), None)
    if element is None:
        return None
    matrix: list[int] = []
    fov: list[float] = []
    for axis in "xyz":
        size = _number(_text(element, f"matrixSize/{axis}") or ("1" if axis == "z" else ""), f"{name} matrix {axis}")
        if not 1 <= size <= _LARGEST_MATRIX or size != int(size):
            raise HeaderError(
                f"{name} matrix {axis} of the scan header is {size:g}: it must be 1 to {_LARGEST_MATRIX}; {_ASK}."
            )
        matrix.append(int(size))
        length = _number(
            _text(element, f"fieldOfView_mm/{axis}") or ("1" if axis == "z" else ""), f"{name} field of view {axis}"
        )
        if not _SMALLEST_FOV_MM <= length <= _LARGEST_FOV_MM:
            raise HeaderError(
                f"{name} field of view {axis} of the scan header is {length:g} mm: "
                f"it must be {_SMALLEST_FOV_MM:g} to {_LARGEST_FOV_MM:g}; {_ASK}."
            )
        fov.append(1e-3 * length)
    return EncodingSpace(matrix=(matrix[0], matrix[1], matrix[2]), fov_m=(fov[0], fov[1], fov[2]))


def _limit(encoding: Any, name: str) -> int | None:
    """Return how many values a counter takes, or ``None`` where the header does not say."""
    path = f"encodingLimits/{name}"
    largest = _numbers(encoding, f"{path}/maximum")
    if not largest:
        return None
    smallest = _numbers(encoding, f"{path}/minimum") or [0.0]
    count = largest[0] - smallest[0] + 1
    if not 1 <= count <= _LARGEST_COUNT + 1 or count != int(count):
        raise HeaderError(
            f"{path} of the scan header is {smallest[0]:g} to {largest[0]:g}: "
            f"whole numbers from 0 to {_LARGEST_COUNT}, the maximum not below the minimum; {_ASK}."
        )
    return int(count)


def _partitions(encoding: Any, encoded: int) -> tuple[int, int, int]:
    """Return the partitions of a slab, how many of them are acquired, and the place of the counter's zero."""
    name = "kspace_encoding_step_2"
    acquired = _limit(encoding, name) or 1
    if acquired == 1 or acquired >= encoded:
        # These fit in one way only, whatever the centre says.
        smallest = _numbers(encoding, f"encodingLimits/{name}/minimum") or [0.0]
        return acquired, acquired, -int(smallest[0])
    centre = _numbers(encoding, f"encodingLimits/{name}/center") or [encoded // 2]
    return encoded, acquired, encoded // 2 - int(centre[0])


def _user_parameters(root: Any) -> Iterator[tuple[str, str | float]]:
    for group in _all(root, "userParameters"):
        for element in group:
            name, text = _text(element, "name"), _text(element, "value")
            if not name:
                continue
            if _name(element) in ("userParameterLong", "userParameterDouble"):
                try:
                    value = float(text)
                except ValueError:
                    value = math.nan
                # Hardly any of them is read here, and who reads one says what it must be.
                yield name, value if math.isfinite(value) else text
            else:
                yield name, text
