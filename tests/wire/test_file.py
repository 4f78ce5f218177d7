import errno
import fcntl
import os
import resource
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from sinotherm.errors import DataError, FileFormatError
from sinotherm.wire.file import AcquisitionWriter, ImageWriter, MrdFile, read_images
from sinotherm.wire.messages import Readout

XML = b"<ismrmrdHeader/>"


def readout(counter: int, *, coils: int = 2, samples: int = 6, dims: int = 2, stamp: int = 0) -> Readout:
    rng = np.random.default_rng(counter)
    header = ismrmrd.AcquisitionHeader()
    header.version = 1
    header.number_of_samples, header.active_channels, header.trajectory_dimensions = samples, coils, dims
    header.scan_counter, header.acquisition_time_stamp = counter, stamp
    header.user_float[3] = 2.5
    data = (rng.standard_normal((coils, samples)) + 1j).astype(np.complex64)
    return Readout(header=header, data=data, trajectory=rng.standard_normal((samples, dims)).astype(np.float32))


def waveform(stamp: int) -> Any:
    return ismrmrd.Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3), time_stamp=stamp, waveform_id=2)


def image(index: int, *, series: int = 1, dtype: str = "f4", shape: tuple[int, ...] = (1, 1, 3, 4)) -> Any:
    pixels = (np.arange(np.prod(shape)).reshape(shape) + index).astype(dtype)
    made = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=series, image_index=index)
    made.meta = {"unit": "°C", "index": str(index)}
    return made


def package_file(path: Path, readouts: list[Readout]) -> None:
    with ismrmrd.Dataset(path, mode="w") as file:
        file.write_xml_header(XML)
        for part in readouts:
            file.append_acquisition(ismrmrd.Acquisition(part.header, part.data, part.trajectory))


def same(got: Readout, expected: Readout) -> None:
    assert bytes(got.header) == bytes(expected.header)
    np.testing.assert_array_equal(got.data, expected.data)
    np.testing.assert_array_equal(got.trajectory, expected.trajectory)
    assert got.data.dtype == np.complex64
    assert got.data.flags.c_contiguous
    assert np.isnan(got.received_s)


def test_an_image_without_pixels_is_kept(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "o.h5") as writer:
        for one in (image(0), image(1, series=2, shape=(1, 1, 0, 4)), image(2)):
            writer.append(one)
    found = read_images(tmp_path / "o.h5")
    assert {number: len(one.headers) for number, one in found.items()} == {1: 2, 2: 1}
    assert found[2].data.shape == (1, 1, 1, 0, 4)


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    parts = [readout(1, samples=4, dims=0), readout(2), readout(3, coils=3, samples=9)]
    package_file(tmp_path / "a.h5", parts)
    with MrdFile(tmp_path / "a.h5") as file:
        assert file.header_xml == XML
        assert (file.n_readouts, file.n_waveforms) == (3, 0)
        got = list(file.items())
    for one, other in zip(got, parts, strict=True):
        same(one, other)


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    parts = [readout(n, samples=4 + n % 3) for n in range(600)]
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for part in parts:
            writer.append(part)
        writer.append(waveform(5))
    writer.close()
    with ismrmrd.Dataset(tmp_path / "a.h5", mode="r") as file:
        assert file.read_xml_header() == XML
        assert file.number_of_acquisitions() == 600
        for number in (0, 1, 511, 512, 599):
            got = file.read_acquisition(number)
            assert bytes(got.getHead()) == bytes(parts[number].header)
            np.testing.assert_array_equal(got.data, parts[number].data)
            np.testing.assert_array_equal(got.traj, parts[number].trajectory)
        assert file.read_waveform(0) == waveform(5)
    with MrdFile(tmp_path / "a.h5") as ours:
        for one, other in zip(ours.readouts(), parts, strict=True):
            same(one, other)


def test_waveforms_follow_the_readouts_up_to_their_stamp(tmp_path: Path) -> None:
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for n, stamp in enumerate((10, 20, 20, 30)):
            writer.append(readout(n, stamp=stamp))
        for stamp in (5, 20, 25, 99):
            writer.append(waveform(stamp))
    with MrdFile(tmp_path / "a.h5") as file:
        order = [
            f"r{item.header.acquisition_time_stamp}" if isinstance(item, Readout) else f"w{item.time_stamp}"
            for item in file.items()
        ]
    assert order == ["w5", "r10", "r20", "r20", "w20", "w25", "r30", "w99"]


def test_a_scan_without_readouts_or_waveforms_is_empty(tmp_path: Path) -> None:
    AcquisitionWriter(tmp_path / "a.h5", XML).close()
    with MrdFile(tmp_path / "a.h5") as file:
        assert (file.n_readouts, file.n_waveforms) == (0, 0)
        assert list(file.items()) == []


def test_memory_is_flat_in_the_length_of_the_scan(tmp_path: Path) -> None:
    peaks = []
    for n in (600, 1800):
        path = tmp_path / f"{n}.h5"
        part = readout(1, coils=8, samples=512)
        tracemalloc.start()
        with AcquisitionWriter(path, XML) as writer:
            for _ in range(n):
                writer.append(part)
        with MrdFile(path) as file:
            assert sum(1 for _ in file.items()) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_other_groups_and_kinds_of_header_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scan/xml"] = XML.decode()
    with MrdFile(tmp_path / "a.h5", dataset="scan") as got:
        assert got.header_xml == XML
    with pytest.raises(FileFormatError, match=r"no group /dataset \(in it: scan\)"):
        MrdFile(tmp_path / "a.h5")


def damaged(path: Path, change: Any) -> None:
    package_file(path, [readout(1), readout(2)])
    with h5py.File(path, "r+") as file:
        change(file)


def rewrite(file: Any, dtype: Any) -> None:
    del file["dataset/data"]
    file["dataset"].create_dataset("data", (1,), dtype=dtype)


def shorten(file: Any, field: str) -> None:
    row = file["dataset/data"][1]
    row[field] = row[field][:-1]
    file["dataset/data"][1] = row


ARRAYS = [("traj", h5py.special_dtype(vlen=np.float32)), ("data", h5py.special_dtype(vlen=np.float32))]
OTHER_HEAD = np.dtype([("head", np.dtype([("version", "u2"), ("colour", "u8")])), *ARRAYS])
_HEAD = ismrmrd.hdf5.acquisition_header_dtype
WRONG_HEAD = np.dtype([("head", np.dtype([(name, "S3") for name in _HEAD.names])), *ARRAYS])


def columns(**types: Any) -> Any:
    return np.dtype([("head", _HEAD), *((name, types.get(name, dtype)) for name, dtype in ARRAYS)])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *(
            (lambda file, name=name, of=of: rewrite(file, columns(**{name: of})), f"the column {name} of .* is of type")
            for name in ("traj", "data")
            for of in (h5py.special_dtype(vlen=str), h5py.special_dtype(vlen=bytes), "f4", "S4", ("f4", (2, 2)))
        ),
        (lambda file: rewrite(file, columns(data=h5py.special_dtype(vlen=np.dtype("c8")))), "array of numbers in each"),
        (lambda file: file.__delitem__("dataset/xml"), "no header"),
        (lambda file: file["dataset/xml"].__setitem__(0, b" "), "no header"),
        (lambda file: rewrite(file, "f4"), "not a table of head, traj, data"),
        (lambda file: rewrite(file, OTHER_HEAD), "header fields .* are not those of MRD 1"),
        (lambda file: rewrite(file, WRONG_HEAD), "not those of MRD 1"),
        (lambda file: shorten(file, "data"), "readout 1 holds 23 data and 12 trajectory values"),
        (lambda file: shorten(file, "traj"), "readout 1 holds 24 data and 11 trajectory values"),
    ],
)
def test_what_is_not_mrd_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    damaged(tmp_path / "a.h5", change)
    with pytest.raises(FileFormatError, match=match), MrdFile(tmp_path / "a.h5") as file:
        list(file.items())


def test_a_waveform_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        writer.append(waveform(1))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        row = file["dataset/waveforms"][0]
        row["data"] = row["data"][:-1]
        file["dataset/waveforms"][0] = row
    with MrdFile(tmp_path / "a.h5") as got, pytest.raises(FileFormatError, match="waveform 0 holds 5 values"):
        list(got.items())


@pytest.mark.parametrize("of", [None, h5py.special_dtype(vlen=str), "u4"])
def test_readouts_do_not_need_a_table_of_waveforms(tmp_path: Path, caplog: pytest.LogCaptureFixture, of: Any) -> None:
    package_file(tmp_path / "a.h5", [readout(1), readout(2)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        if of is None:
            file.create_group("dataset/waveforms")
        else:
            dtype = np.dtype([("head", ismrmrd.hdf5.waveform_header_dtype), ("data", of)])
            file["dataset"].create_dataset("waveforms", (1,), dtype=dtype)
    with MrdFile(tmp_path / "a.h5") as got:
        assert got.n_waveforms == 0
        items = got.items()
        assert [next(items).header.scan_counter for _ in range(2)] == [1, 2]
        with pytest.raises(FileFormatError, match="/dataset/waveforms is"):
            next(items)
    assert "no waveforms: " in caplog.text


def test_readouts_of_fixed_length_and_other_numbers_are_read(tmp_path: Path) -> None:
    parts = [readout(1), readout(2)]
    package_file(tmp_path / "a.h5", parts)
    rows = np.empty(2, columns(traj=("f8", (12,)), data=("f8", (24,))))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["dataset/data"]
        for row, part in zip(rows, parts, strict=True):
            row["head"] = np.frombuffer(bytes(part.header), _HEAD)[0]
            row["traj"], row["data"] = part.trajectory.ravel(), part.data.view(np.float32).ravel()
        file["dataset/data"] = rows
    with MrdFile(tmp_path / "a.h5") as got:
        for one, other in zip(got.readouts(), parts, strict=True):
            same(one, other)


def test_an_empty_header_table_is_no_header(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("dataset").create_dataset("xml", (0,), dtype="S9")
    with pytest.raises(FileFormatError, match="no header"):
        MrdFile(tmp_path / "a.h5")


def test_headers_of_another_byte_order_are_read(tmp_path: Path) -> None:
    package_file(tmp_path / "a.h5", [readout(1)])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        row = file["dataset/data"][:]
        dtype = np.dtype([("head", _HEAD.newbyteorder(">")), *ARRAYS])
        del file["dataset/data"]
        file["dataset"].create_dataset("data", (1,), dtype=dtype)
        turned = np.empty(1, dtype)
        turned["head"], turned["traj"], turned["data"] = row["head"], row["traj"], row["data"]
        file["dataset/data"][:] = turned
    with MrdFile(tmp_path / "a.h5") as got:
        same(next(got.readouts()), readout(1))


def test_missing_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        MrdFile(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_text("not HDF5")
    with pytest.raises(FileFormatError, match="not an HDF5 file"):
        MrdFile(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileFormatError, match="not an MRD file"):
        MrdFile(tmp_path / "b.h5")
    package_file(tmp_path / "c.h5", [readout(n) for n in range(9)])
    raw = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FileFormatError, match="damaged"):
        MrdFile(tmp_path / "c.h5")
    with pytest.raises(FileFormatError, match="a folder; give the MRD file itself"):
        MrdFile(tmp_path)
    with pytest.raises(FileFormatError, match=r"cannot be written, there is no folder .*none; make it first"):
        AcquisitionWriter(tmp_path / "none" / "a.h5", XML)
    with pytest.raises(FileFormatError, match="cannot be written, it is a folder"):
        AcquisitionWriter(tmp_path, XML)
    with h5py.File(tmp_path / "b.h5"), pytest.raises(FileFormatError, match="is it open elsewhere"):
        AcquisitionWriter(tmp_path / "b.h5", XML)


def corrupt(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


def test_damage_inside_a_file_is_noticed(tmp_path: Path) -> None:
    parts = [readout(n, coils=8, samples=512) for n in range(200)]
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for part in parts:
            writer.append(part)
    size = (tmp_path / "a.h5").stat().st_size
    failed = []
    for n in range(8):
        path = tmp_path / f"{n}.h5"
        shutil.copy(tmp_path / "a.h5", path)
        corrupt(path, size * (n + 1) // 10 // 4096 * 4096, 8192)
        try:
            with MrdFile(path) as file:
                assert sum(1 for _ in file.readouts()) == len(parts)
        except FileFormatError as error:
            failed.append(str(error))
    assert any("truncated or damaged" in text for text in failed)


class BadRow:
    """A table of which one row cannot be read."""

    def __init__(self, table: Any, bad: int) -> None:
        self.table, self.bad = table, bad

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: slice) -> Any:
        if rows.start <= self.bad < rows.stop:
            raise OSError("unreadable")
        return self.table[rows]


@pytest.mark.parametrize("bad", [0, 2, 4, 300, 699])
def test_what_is_good_before_a_bad_row_is_kept(tmp_path: Path, bad: int) -> None:
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for n in range(700):
            writer.append(readout(n, stamp=n))
        writer.append(waveform(0))
    with MrdFile(tmp_path / "a.h5") as file:
        file._readouts = BadRow(file._readouts, bad)
        got = file.readouts()
        for n in range(bad):
            same(next(got), readout(n, stamp=n))
        with pytest.raises(FileFormatError, match=f"rows {bad} to {bad} cannot be read .*truncated or damaged"):
            next(got)


def test_readouts_do_not_need_the_waveforms(tmp_path: Path) -> None:
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for stamp in range(3):
            writer.append(readout(stamp, stamp=stamp))
            writer.append(waveform(stamp))
    with MrdFile(tmp_path / "a.h5") as file:
        file._waveforms = BadRow(file._waveforms, 1)
        got = file.items()
        assert [type(next(got)).__name__ for _ in range(4)] == ["Readout", "Waveform", "Readout", "Readout"]
        with pytest.raises(FileFormatError, match="rows 1 to 1"):
            next(got)


def read_all(path: Path) -> None:
    with MrdFile(path) as file:
        list(file.items())
        list(file.images())
    read_images(path)


@pytest.mark.parametrize(
    ("spot", "damaged"),
    [
        (b"SNOD", b"SNOX"),
        (b"TREE", b"TREX"),
        (b"HEAP", b"HEAX"),
        (b"dataset\0", b"data\xfeet\0"),
        (b"number_of_samples\0", b"numb\xfer_of_samples\0"),
    ],
)
def test_damaged_structures_are_told(tmp_path: Path, spot: bytes, damaged: bytes) -> None:
    path = tmp_path / "a.h5"
    with AcquisitionWriter(path, XML) as writer:
        writer.append(readout(1))
    with h5py.File(path, "r+") as file:
        group = file["dataset"].create_group("image_1")
        for name in ("header", "attributes", "data"):
            group[name] = np.zeros(1)
    raw = path.read_bytes()
    assert spot in raw
    for start in (raw.find(spot), raw.rfind(spot)):
        path.write_bytes(raw[:start] + damaged + raw[start + len(spot) :])
        with pytest.raises(FileFormatError):
            read_all(path)


def test_time_stamps_are_looked_for(tmp_path: Path) -> None:
    for stamps, expected in (([], False), ([0, 0], False), ([0] * 4100 + [3], True)):
        with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
            for n, stamp in enumerate(stamps):
                writer.append(readout(n, samples=1, stamp=stamp))
        with MrdFile(tmp_path / "a.h5") as file:
            assert file.has_time_stamps is expected


def test_a_header_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("dataset/xml")
    with pytest.raises(FileFormatError, match="header cannot be read"):
        MrdFile(tmp_path / "a.h5")


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "f4", "f8", "c8", "c16"])
def test_the_package_reads_our_images(tmp_path: Path, dtype: str) -> None:
    images = [image(n, dtype=dtype) for n in range(5)]
    with ImageWriter(tmp_path / "a.h5", XML) as writer:
        for part in images:
            writer.append(part)
        writer.append(image(9, series=6, dtype="u2", shape=(2, 1, 2, 2)))
    assert writer.counts == {1: 5, 6: 1}
    with ismrmrd.Dataset(tmp_path / "a.h5", mode="r") as file:
        assert file.number_of_images("image_1") == 5
        for number, part in enumerate(images):
            got = file.read_image("image_1", number)
            np.testing.assert_array_equal(got.data, part.data)
            assert got.meta == part.meta
            assert got.image_index == number
            assert got.getHead().attribute_string_len == len(part.attribute_string.encode())
    series = read_images(tmp_path / "a.h5")
    assert sorted(series) == [1, 6]
    np.testing.assert_array_equal(series[1].data, np.stack([part.data for part in images]))
    assert series[1].data.dtype == np.dtype(dtype)
    assert series[1].headers[3].image_index == 3
    assert series[1].meta[3] == images[3].meta


def test_we_read_images_of_the_package(tmp_path: Path) -> None:
    with ismrmrd.Dataset(tmp_path / "a.h5", mode="w") as file:
        for n in range(3):
            file.append_image("image_0", image(n, dtype="c8"))
        file.append_array("array_0", np.ones(3, np.float32))
    series = read_images(tmp_path / "a.h5")
    assert list(series) == [0]
    np.testing.assert_array_equal(series[0].data[2], image(2, dtype="c8").data)
    assert series[0].meta[1]["index"] == "1"


def test_images_of_another_shape_or_type_have_tables_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, small = (1, 1, 3, 4), (1, 1, 2, 2)
    layouts = [("f4", whole), ("f8", whole), ("f4", small), ("f4", whole), ("f8", whole), ("f4", small)]
    images = [image(n, dtype=dtype, shape=shape) for n, (dtype, shape) in enumerate(layouts)]
    with ImageWriter(tmp_path / "a.h5", XML) as writer:
        for n, part in enumerate(images):
            writer.append(part)
            writer.append(image(n, series=10))
            if n == 3:
                writer.flush()
    assert writer.counts == {1: 6, 10: 6}
    assert [record.message for record in caplog.records] == [
        "image 1 of series 1 is float64 (1, 1, 3, 4) and the first was float32 (1, 1, 3, 4) (channel, z, y, x): "
        "it goes into image_1_1",
        "image 2 of series 1 is float32 (1, 1, 2, 2) and the first was float32 (1, 1, 3, 4) (channel, z, y, x): "
        "it goes into image_1_2",
    ]
    found = read_images(tmp_path / "a.h5")
    assert list(found) == [1, 10]
    assert found[10].others == ()
    for start, series in enumerate((found[1], *found[1].others)):
        assert [head.image_index for head in series.headers] == [start, start + 3]
        np.testing.assert_array_equal(series.data, [images[start].data, images[start + 3].data])
    with ismrmrd.Dataset(tmp_path / "a.h5", mode="r") as file:
        np.testing.assert_array_equal(file.read_image("image_1_2", 1).data, images[5].data)
    with MrdFile(tmp_path / "a.h5") as ours:
        assert len(list(ours.items())) == 12


def test_images_reach_the_disk_while_the_scan_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("sinotherm.wire.file.monotonic", lambda: clock[0])
    writer = ImageWriter(tmp_path / "a.h5")
    writer.append(image(1))
    assert not (tmp_path / "a.h5").exists()
    clock[0] += 1.5
    writer.append(image(2))
    assert len(writer._group["image_1/header"]) == 2
    writer.append(image(3, series=2, shape=(1, 1, 1100, 1100)))
    assert len(writer._group["image_2/header"]) == 1
    writer.close()


@pytest.mark.parametrize("before", [None, "an earlier result"])
def test_without_an_image_nothing_is_written_or_replaced(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a.h5"
    if before:
        path.write_text(before)
    ImageWriter(path, XML).close()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])
    with ImageWriter(path, XML) as writer:
        writer.append(image(1))
    assert list(read_images(path)) == [1]
    with h5py.File(path), pytest.raises(FileFormatError, match="is it open elsewhere"):
        ImageWriter(path, XML)
    assert list(read_images(path)) == [1]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file grow beyond this many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_images_there_is_room_for(tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path / "a.h5", XML)
    for index in range(1, 8):
        writer.append(image(index, shape=(1, 1, 96, 96)))
        writer.append(image(index, series=3, shape=(1, 1, 96, 96)))
    with full_disk(300_000), pytest.raises(DataError, match=r"a\.h5: cannot be written any more .* 4 images are in it"):
        writer.flush()
    writer.close()
    assert writer.counts == {1: 2, 3: 2}
    kept = read_images(tmp_path / "a.h5")
    assert {series: len(found.headers) for series, found in kept.items()} == writer.counts
    np.testing.assert_array_equal(kept[3].data[1], image(2, shape=(1, 1, 96, 96)).data)


def test_room_that_comes_back_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ImageWriter(tmp_path / "a.h5")
    writer.append(image(0))
    writer.flush()
    for index in range(1, 3):
        writer.append(image(index))
    answers = iter([OSError(errno.ENOSPC, "No space left on device")])

    def full_at_first(*_: int) -> None:
        if error := next(answers, None):
            raise error

    monkeypatch.setattr(os, "posix_fallocate", full_at_first)
    writer.close()
    assert [head.image_index for head in read_images(tmp_path / "a.h5")[1].headers] == [0, 1, 2]


def test_a_full_disk_ends_readouts_too_and_is_told_at_the_start(tmp_path: Path) -> None:
    with full_disk(40_000), pytest.raises(FileFormatError, match=r"b\.h5: cannot be written .* or the disk full"):
        ImageWriter(tmp_path / "b.h5", XML)
    assert list(tmp_path.iterdir()) == []
    writer = AcquisitionWriter(tmp_path / "a.h5", XML)
    for number in range(500):
        writer.append(readout(number, samples=64))
    with full_disk(300_000), pytest.raises(DataError, match=r"a\.h5: cannot be written any more .* 0 readouts are in"):
        writer.flush()
    writer.close()
    with MrdFile(tmp_path / "a.h5") as file:
        assert file.n_readouts == 0


def test_hdf5_does_not_try_again_after_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any) -> None:
        raise OSError(errno.ENOSPC, "Driver write request failed")

    with ImageWriter(tmp_path / "a.h5") as writer:
        writer.append(image(1))
        writer.flush()
        size = (tmp_path / "a.h5").stat().st_size
        monkeypatch.setattr(h5py.Dataset, "flush", failing)
        writer.append(image(2))
        with pytest.raises(DataError, match=r"Driver write request failed.* 1 images are in it"):
            writer.flush()
        assert not writer._file
    assert (tmp_path / "a.h5").stat().st_size == size


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_make_room_beforehand_or_lock_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unable(*_: int) -> None:
        raise OSError(number, "unable")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    monkeypatch.setattr(fcntl, "flock", unable)
    for _ in range(2):
        with ImageWriter(tmp_path / "a.h5") as writer:
            writer.append(image(1))
    assert len(read_images(tmp_path / "a.h5")[1].headers) == 1


_CALLS = [
    *((h5py.Group, name) for name in ("require_group", "require_dataset", "create_dataset")),
    *((h5py.Dataset, name) for name in ("resize", "__setitem__", "flush")),
    (h5py.File, "flush"),
]


@contextmanager
def interrupted_after(n_calls: int) -> Iterator[None]:
    """Interrupt, as Ctrl-C would, after so many calls of h5py."""
    left = [n_calls]

    def counting(inner: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = inner(*arguments, **options)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind, name in _CALLS:
            patch.setattr(kind, name, counting(getattr(kind, name)))
        yield


@pytest.mark.parametrize("n_calls", range(1, 33))
def test_an_interrupted_write_of_images_is_made_good(tmp_path: Path, n_calls: int) -> None:
    writer = ImageWriter(tmp_path / "a.h5", XML)
    for index in range(3):
        for series in (1, 2):
            writer.append(image(index, series=series))
    with interrupted_after(n_calls), pytest.raises(KeyboardInterrupt):
        writer.flush()
    writer.append(image(3))
    writer.close()
    assert writer.counts == {1: 4, 2: 3}
    with MrdFile(tmp_path / "a.h5") as file:
        assert file.header_xml == XML
    for series, found in read_images(tmp_path / "a.h5").items():
        assert [head.image_index for head in found.headers] == list(range(writer.counts[series]))
        assert [meta["index"] for meta in found.meta] == [str(index) for index in range(writer.counts[series])]
        np.testing.assert_array_equal(found.data, [image(n, series=series).data for n in range(writer.counts[series])])


@pytest.mark.parametrize("n_calls", range(1, 15))
def test_an_interrupted_write_of_readouts_is_made_good(tmp_path: Path, n_calls: int) -> None:
    with AcquisitionWriter(tmp_path / "a.h5", XML) as writer:
        for number in range(3):
            writer.append(readout(number))
            writer.append(waveform(number))
        with interrupted_after(n_calls), pytest.raises(KeyboardInterrupt):
            writer.flush()
    with MrdFile(tmp_path / "a.h5") as file:
        for number, got in enumerate(file.readouts()):
            same(got, readout(number))
        assert [got.time_stamp for got in file.waveforms()] == [0, 1, 2]
        assert file.n_readouts == 3


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "a.h5") as writer:
        writer.append(image(1))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["dataset/image_1/attributes"][0] = "<a/>"
    with pytest.raises(DataError, match="ismrmrdMeta"):
        read_images(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["dataset/image_1/attributes"]
    with pytest.raises(FileFormatError, match="lacks one of"):
        read_images(tmp_path / "a.h5")


@pytest.mark.parametrize("pixels", [np.zeros((1, 1, 1, 3, 4), "f2"), np.array([b"a"]), np.zeros(1), np.zeros((1,) * 6)])
def test_images_of_no_type_of_mrd_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with ImageWriter(tmp_path / "a.h5", XML) as writer:
        writer.append(image(1))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["dataset/image_1/data"]
        file["dataset/image_1/data"] = pixels
    with pytest.raises(FileFormatError, match=r"image_1/data is .* axes; images are \(frame, channel, z, y, x\) of "):
        read_images(tmp_path / "a.h5")
    with MrdFile(tmp_path / "a.h5") as got, pytest.raises(FileFormatError, match="images are"):
        list(got.items())


@pytest.mark.parametrize("stored", [">f4", ">c8", "i4", "<i8"])
def test_images_of_another_byte_order_or_width_are_read(tmp_path: Path, stored: str) -> None:
    with ImageWriter(tmp_path / "a.h5", XML) as writer:
        writer.append(image(1))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["dataset/image_1/data"]
        file["dataset/image_1/data"] = image(1).data[None].astype(stored)
    np.testing.assert_array_equal(read_images(tmp_path / "a.h5")[1].data[0], image(1).data)
    with MrdFile(tmp_path / "a.h5") as got:
        (found,) = got.items()
    np.testing.assert_array_equal(found.data, image(1).data)
    assert found.data.dtype.isnative


def test_unreadable_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageWriter(tmp_path / "a.h5") as writer:
        writer.append(image(1))

    def fail(*_: Any) -> None:
        raise OSError("unreadable")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_images(tmp_path / "a.h5")


def test_the_other_series_of_a_damaged_one_can_be_had(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "a.h5", XML) as writer:
        for series in (1, 2, 3, 4):
            writer.append(image(1, series=series))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["dataset/image_1/data"]
        del file["dataset/image_2"]
        file["dataset/image_2"] = np.zeros(3)
        file["dataset/image_4/header"].resize(2, axis=0)
    problems: list[str] = []
    assert list(read_images(tmp_path / "a.h5", problems=problems)) == [3]
    assert [text.partition("/dataset/")[2] for text in problems] == [
        "image_1 lacks one of header, attributes, data.",
        "image_2 lacks one of header, attributes, data.",
        "image_4 holds 2 headers, 1 attributes and 1 images; the file is truncated or damaged.",
    ]
    with pytest.raises(FileFormatError, match="image_1 lacks one of"):
        read_images(tmp_path / "a.h5")


def test_paths_may_be_texts(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path / "a.h5"), XML) as writer:
        writer.append(image(1))
    assert list(read_images(str(tmp_path / "a.h5"))) == [1]
    with AcquisitionWriter(str(tmp_path / "b.h5"), XML) as readouts:
        readouts.append(readout(1))
    with MrdFile(str(tmp_path / "b.h5")) as file:
        same(next(file.readouts()), readout(1))


def test_a_file_of_images_is_read_one_by_one(tmp_path: Path) -> None:
    images = [image(n, series=series, dtype="c8") for series in (1, 2, 10) for n in range(3)]
    with ImageWriter(tmp_path / "a.h5", XML + b"\0") as writer:
        for part in images:
            writer.append(part)
    with MrdFile(tmp_path / "a.h5") as file:
        got = list(file.items())
    assert [(part.image_series_index, part.image_index) for part in got] == [
        (part.image_series_index, part.image_index) for part in images
    ]
    for one, other in zip(got, images, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        assert one.meta == other.meta


@pytest.mark.skipif(shutil.which("ismrmrd_info") is None, reason="ismrmrd-tools (Debian) is not installed")
def test_files_of_and_for_the_debian_tools(tmp_path: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run([*command], check=True, capture_output=True, timeout=60)

    theirs, ours = tmp_path / "theirs.h5", tmp_path / "ours.h5"
    run("ismrmrd_generate_cartesian_shepp_logan", "-m", "32", "-c", "2", "-k", "-o", str(theirs))
    with MrdFile(theirs) as file, AcquisitionWriter(ours, file.header_xml) as writer:
        assert file.n_readouts == 32
        for part in file.items():
            writer.append(part)
    made = []
    for path in (theirs, ours):
        run("ismrmrd_info", str(path))
        run("ismrmrd_recon_cartesian_2d", str(path))
        with ismrmrd.Dataset(path, mode="r") as result:
            made.append(result.read_image("cpp", 0).data.copy())
    assert made[0].max() > 0
    np.testing.assert_array_equal(made[0], made[1])
