"""The record of a study and the geometry of a frame: answers by hand, invariants, files as archives hold them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    generate_uid,
)

from chestxai.sources.records import image_size
from chestxai.sources.splits import split_patients
from chestxai.studies import (
    FINDINGS,
    Box,
    Finding,
    Frame,
    Study,
    box_of,
    phrases,
    read_image,
    to_bytes,
    to_images,
)
from tests.pictures import ramp

fits = st.sampled_from(["crop", "letterbox"])


@st.composite
def frames_and_boxes(draw) -> tuple[Frame, Box]:
    """A frame of any shape and a box on the pixel grid of its original image."""
    height, width = draw(st.integers(16, 120)), draw(st.integers(16, 120))
    w, h = draw(st.integers(4, width)), draw(st.integers(4, height))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return Frame(height, width, draw(st.integers(8, 96)), draw(fits)), Box(float(x), float(y), float(w), float(h))


def filled(height: int, width: int, box: Box) -> np.ndarray:
    image = np.zeros((height, width), np.uint8)
    image[round(box.y) : round(box.y + box.h), round(box.x) : round(box.x + box.w)] = 255
    return image


def study(id: str = "s", patient: str = "p", **options: object) -> Study:
    given = {"source": "made", "split": "test", "report": "", "size": (8, 8), "array": np.full((8, 8), 7, np.uint8)}
    return Study(id, patient, **(given | options))


def dicom(path: Path, values: np.ndarray, photometric: str = "MONOCHROME2", **elements: object) -> Path:
    """A DICOM file of a grey image, uint8 or uint16 ``(h, w)``, as a detector of 12 or 8 bits stores it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.PhotometricInterpretation, found.SamplesPerPixel = "DX", photometric, 1
    found.Rows, found.Columns = values.shape
    found.BitsAllocated = 8 * values.itemsize
    found.BitsStored = min(12, found.BitsAllocated)
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, 0
    found.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


class TestBox:
    @pytest.mark.parametrize("numbers", [(0, 0, 0, 1), (0, 0, 1, -1), (np.nan, 0, 1, 1), (0, 0, np.inf, 1)])
    def test_refuses_what_is_no_box(self, numbers):
        with pytest.raises(ValueError, match="a box needs finite x, y and positive w, h"):
            Box(*numbers)

    def test_clipping(self):
        assert Box(-2, 3, 5, 4).clipped(6, 10) == Box(0, 3, 3, 3)
        assert Box(2, 3, 5, 4).clipped(10, 10) == Box(2, 3, 5, 4)
        # A box that touches the edge from outside is outside.
        assert Box(10, 0, 5, 5).clipped(10, 10) is None
        assert Box(-5, 0, 5, 5).clipped(10, 10) is None

    def test_box_of_a_mask_by_hand(self):
        mask = np.zeros((5, 7), dtype=bool)
        mask[1, 2] = mask[3, 5] = True
        assert box_of(mask) == Box(2, 1, 4, 3)
        assert box_of(np.zeros((5, 7), dtype=bool)) is None
        assert box_of(np.ones((5, 7), dtype=bool)) == Box(0, 0, 7, 5)

    @given(frames_and_boxes())
    @settings(deadline=None)
    def test_box_of_is_tight(self, drawn):
        frame, box = drawn
        assert box_of(filled(frame.height, frame.width, box) > 0) == box


class TestFrameByHand:
    def test_crop_of_a_wide_image(self):
        # 200 × 300 into 100²: the central square is columns 50 to 250, scaled by one half.
        frame = Frame(200, 300, 100, "crop")
        assert (frame.scale, frame.offset) == (0.5, (-25.0, 0.0))
        assert frame.box(Box(100, 20, 40, 60)) == Box(25, 10, 20, 30)
        assert frame.kept(Box(100, 20, 40, 60)) == 1

    def test_crop_of_a_tall_image(self):
        frame = Frame(300, 200, 100, "crop")
        assert (frame.scale, frame.offset) == (0.5, (0.0, -25.0))
        assert frame.box(Box(20, 100, 60, 40)) == Box(10, 25, 30, 20)

    def test_crop_cuts_a_box_and_says_how_much(self):
        frame = Frame(200, 300, 100, "crop")
        # Columns 30 to 70: half of it lies left of column 50.
        assert frame.box(Box(30, 0, 40, 20)) == Box(0, 0, 10, 10)
        assert frame.kept(Box(30, 0, 40, 20)) == 0.5
        assert frame.box(Box(0, 0, 50, 20)) is None
        assert frame.kept(Box(0, 0, 50, 20)) == 0

    def test_letterbox_keeps_everything(self):
        # 200 × 300 into 150²: scaled by one half, 100 rows between two black bars of 25.
        frame = Frame(200, 300, 150, "letterbox")
        assert (frame.scale, frame.offset) == (0.5, (0.0, 25.0))
        assert frame.box(Box(0, 0, 300, 200)) == Box(0, 25, 150, 100)
        assert frame.kept(Box(0, 0, 300, 200)) == 1
        image = frame.image(np.full((200, 300), 90, np.uint8))
        assert (image[25:125] == 90).all()
        assert not image[:25].any()
        assert not image[125:].any()

    def test_a_letterbox_bar_may_end_inside_a_pixel(self):
        # 100 × 77 into 64²: 49.28 columns of content from 7.36 to 56.64; the pixels at its ends are partly covered.
        image = Frame(100, 77, 64, "letterbox").image(np.full((100, 77), 100, np.uint8))
        assert (image[:, 8:56] == 100).all()
        assert set(image[:, 7]) == {64}
        assert set(image[:, 56]) == {64}
        assert not image[:, :7].any()
        assert not image[:, 57:].any()

    def test_an_odd_difference_is_centred_on_half_a_pixel(self):
        # 4 × 5 into 4²: the central square runs from column 0.5 to 4.5, so every new pixel is the mean of two.
        ramp = np.tile(np.array([0, 40, 80, 120, 160], np.uint8), (4, 1))
        assert Frame(4, 5, 4, "crop").image(ramp)[1, 1:3].tolist() == [60, 100]

    def test_an_image_of_the_models_size_is_untouched(self):
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
        for fit in ("crop", "letterbox"):
            assert Frame(8, 8, 8, fit).image(pixels) is pixels

    def test_the_stored_file_may_have_another_resolution_than_the_boxes(self):
        # Boxes in a 100 × 150 frame, the file three times as large.
        frame, box = Frame(100, 150, 50, "crop"), Box(61, 30, 30, 24)
        small = frame.image(filled(100, 150, box))
        large = frame.image(filled(300, 450, Box(183, 90, 90, 72)))
        # The same square, with sharper edges.
        np.testing.assert_array_equal(small >= 128, large >= 128)
        np.testing.assert_array_equal(large >= 128, frame.mask(Finding("Edema", boxes=(box,))))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Frame(8, 8, 8, "stretch"), "fit must be 'crop' or 'letterbox', not 'stretch'"),
            (lambda: Frame(0, 8, 8), "at least one pixel"),
            (lambda: Frame(8, 8, 0), "at least one pixel"),
            (lambda: Frame(8, 8, 4).image(np.zeros((8, 8, 3), np.uint8)), r"grey image.*\(8, 8, 3\)"),
            (lambda: Frame(8, 8, 4).image(np.zeros((8, 8), np.float32)), "got float32"),
            (lambda: Frame(80, 80, 4).image(np.zeros((80, 60), np.uint8)), "80 × 60, another shape than its frame"),
        ],
    )
    def test_errors_say_what_is_wrong(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class TestFrameInvariants:
    @given(frames_and_boxes())
    @example((Frame(22, 56, 8, "letterbox"), Box(0.0, 1.0, 40.0, 20.0)))
    @settings(deadline=None)
    def test_a_filled_box_lands_where_the_frame_says(self, drawn):
        """Different code moves the image, the box and the mask: they must agree to a fraction of a pixel."""
        frame, box = drawn
        moved = frame.box(box)
        assume(moved is not None and min(moved.w, moved.h) >= 2)
        image = frame.image(filled(frame.height, frame.width, box)) / 255
        pixel = np.arange(frame.size) + 0.5
        # One pixel, of the original if that is the coarser one.
        coarse = max(1.0, frame.scale)
        centre = (image.sum(axis=0) @ pixel / image.sum(), image.sum(axis=1) @ pixel / image.sum())
        assert centre == pytest.approx((moved.x + moved.w / 2, moved.y + moved.h / 2), abs=0.25 * coarse)
        # What blurring loses on one side of an edge it gains on the other, unless there is a letterbox bar: then the
        # tail of a triangle filter is lost, 1/6 of a pixel for each edge.
        assert image.sum() == pytest.approx(moved.area, abs=coarse * 2 * (moved.w + moved.h) / 6)

    @given(frames_and_boxes())
    @settings(deadline=None)
    def test_the_mask_of_a_box_and_of_its_pixels_agree(self, drawn):
        frame, box = drawn
        moved = frame.box(box)
        assume(moved is not None and min(moved.w, moved.h) >= 2)
        by_box = frame.mask(Finding("Edema", boxes=(box,)))
        by_pixels = frame.mask(Finding("Edema", mask=filled(frame.height, frame.width, box) > 0))
        # They may differ at the outline only, and never two pixels deep.
        y, x = np.mgrid[: frame.size, : frame.size] + 0.5
        inside = (x > moved.x + 1) & (x < moved.x + moved.w - 1) & (y > moved.y + 1) & (y < moved.y + moved.h - 1)
        outside = (x < moved.x - 1) | (x > moved.x + moved.w + 1) | (y < moved.y - 1) | (y > moved.y + moved.h + 1)
        for mask in (by_box, by_pixels):
            assert mask[inside].all()
            assert not mask[outside].any()

    @given(frames_and_boxes())
    @settings(deadline=None)
    def test_kept_is_the_share_of_the_area_that_is_inside(self, drawn):
        frame, box = drawn
        kept, moved = frame.kept(box), frame.box(box)
        assert kept == pytest.approx(0 if moved is None else moved.area / frame.scale**2 / box.area)
        assert 0 <= kept <= 1
        if frame.fit == "letterbox":
            assert kept == pytest.approx(1)

    @given(frames_and_boxes())
    @settings(deadline=None)
    def test_a_box_never_vanishes_inside_the_frame(self, drawn):
        frame, box = drawn
        speck = replace(box, w=0.01, h=0.01)
        assert frame.mask(Finding("Edema", boxes=(speck,))).sum() == (frame.box(speck) is not None)

    def test_a_mask_never_vanishes_inside_the_frame(self):
        # One pixel of 64² is a hundredth of a pixel of 8²: it is kept as a thin box would be.
        mask = np.zeros((64, 64), dtype=bool)
        mask[17, 42] = True
        small = Frame(64, 64, 8).mask(Finding("Edema", mask=mask))
        assert np.argwhere(small).tolist() == [[2, 5]]
        # The mask may be stored at another resolution than the frame's.
        large = np.zeros((640, 640), dtype=bool)
        large[170, 420] = True
        np.testing.assert_array_equal(Frame(64, 64, 8).mask(Finding("Edema", mask=large)), small)
        # Outside the crop it is gone, like a box.
        mask = np.zeros((64, 200), dtype=bool)
        mask[17, 3] = True
        assert not Frame(64, 200, 8, "crop").mask(Finding("Edema", mask=mask)).any()

    def test_several_boxes_make_one_mask(self):
        boxes = Box(0, 0, 2, 2), Box(6, 6, 2, 2)
        mask = Frame(8, 8, 4).mask(Finding("Edema", boxes=boxes))
        assert np.argwhere(mask).tolist() == [[0, 0], [3, 3]]
        assert not Frame(8, 8, 4).mask(Finding("Edema")).any()


class TestReadImage:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20

    def test_grey_png(self, tmp_path):
        Image.fromarray(self.values).save(tmp_path / "a.png")
        read = read_image(tmp_path / "a.png")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, self.values)

    def test_sixteen_bits_are_scaled_by_their_own_range(self, tmp_path):
        # A detector of 12 bits in a file of 16, as in PadChest: 100 is black, 4100 white.
        Image.fromarray(np.array([[100, 1100], [3100, 4100]], np.uint16)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").tolist() == [[0, 64], [191, 255]]

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
    def test_grey_stored_with_colours_is_the_same_grey(self, mode, tmp_path):
        Image.fromarray(self.values).convert(mode).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), self.values)

    def test_jpeg(self, tmp_path):
        Image.fromarray(ramp(16, 24)).save(tmp_path / "a.jpg", quality=95)
        read = read_image(tmp_path / "a.jpg")
        assert read.shape == (16, 24)
        assert np.abs(read.astype(int) - ramp(16, 24)).max() <= 3

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("deep", [False, True])
    def test_it_is_turned_as_pillow_would(self, tmp_path, orientation, deep):
        image = Image.fromarray(ramp(16, 24).astype(np.uint16) * 257 if deep else ramp(16, 24))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as stored:
            turned = np.asarray(ImageOps.exif_transpose(stored))
        read = read_image(tmp_path / "a.png")
        assert read.shape == image_size(tmp_path / "a.png") == turned.shape
        np.testing.assert_array_equal(read, to_bytes(turned.astype(np.float32)) if deep else turned)

    def test_a_png_whose_text_says_how_it_is_turned_has_one_shape(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        text = PngImagePlugin.PngInfo()
        content = exif.tobytes()
        text.add_text("Raw profile type exif", f"\nexif\n{len(content):8d}\n{content.hex()}\n")
        Image.fromarray(ramp(16, 24)).save(tmp_path / "a.png", pnginfo=text)  # as ImageMagick leaves it
        assert read_image(tmp_path / "a.png").shape == image_size(tmp_path / "a.png") == (24, 16)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_damaged_exif_costs_no_image(self, data):
        exif = Image.Exif()
        exif[0x0112], exif[0x011A], exif[0x010E] = 6, 72.0, "chest"
        stored = io.BytesIO()
        Image.fromarray(ramp(16, 24)).save(stored, "jpeg", exif=exif)
        content = bytearray(stored.getvalue())
        start = content.index(b"Exif") + 6
        for _ in range(data.draw(st.integers(1, 4))):
            content[start + data.draw(st.integers(0, len(exif.tobytes()) - 8))] = data.draw(st.integers(0, 255))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.jpg"
            path.write_bytes(content)
            assert read_image(path).shape == image_size(path)

    @pytest.mark.parametrize(
        "kind",
        ["empty", "text", "truncated png", "truncated jpeg", "gigapixels", "missing", "folder", "palette", "16 bits"],
    )
    def test_what_cannot_be_read_is_named(self, kind, tmp_path):
        path = tmp_path / "bad.png"
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))
        if kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("<html>403 Forbidden</html>")
        elif kind == "folder":
            path.mkdir()
        elif kind in ("palette", "16 bits"):
            # A palette without colours; colours of 16 bits, of which Pillow would drop the low byte.
            pixels = bytes(41 * 40) if kind == "palette" else (b"\0" + bytes(range(240))) * 40
            head = struct.pack(">IIBBBBB", 40, 40, *((8, 3) if kind == "palette" else (16, 2)), 0, 0, 0)
            parts = [(b"IHDR", head), (b"tRNS", b"\0")][: 2 if kind == "palette" else 1]
            path.write_bytes(b"\x89PNG\r\n\x1a\n")
            with path.open("ab") as file:
                for name, content in [*parts, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]:
                    file.write(struct.pack(">I", len(content)) + name + content)
                    file.write(struct.pack(">I", zlib.crc32(name + content)))
        elif kind == "gigapixels":
            # Damage in the header: it now promises 20,000 × 20,000 pixels.
            noise.save(path, "png")
            content = path.read_bytes()
            header = b"IHDR" + struct.pack(">II", 20000, 20000) + content[24:29]
            path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
        elif kind.startswith("truncated"):
            noise.save(path, kind.split()[1])
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"bad\.png: not a readable image \(.+\)"):
            read_image(path)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_damaged_bytes_never_raise_anything_else(self, data):
        stored = io.BytesIO()
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(
            stored, data.draw(st.sampled_from(["png", "jpeg"]))
        )
        content = bytearray(stored.getvalue())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.img"
            path.write_bytes(content)
            with contextlib.suppress(ValueError):
                assert read_image(path).dtype == np.uint8


class TestDicom:
    # 12 bits: black is 100, white 4000; three steps of 1,300 between.
    values = np.array([[100, 1400], [2700, 4000]], np.uint16)

    def test_scaled_by_its_own_range(self, tmp_path):
        path = dicom(tmp_path / "a.dicom", self.values)
        assert read_image(path).tolist() == [[0, 85], [170, 255]]
        assert read_image(path).dtype == np.uint8
        assert image_size(path) == (2, 2)

    def test_monochrome1_is_inverted(self, tmp_path):
        assert read_image(dicom(tmp_path / "a.dicom", self.values, "MONOCHROME1")).tolist() == [[255, 170], [85, 0]]

    def test_the_first_window_is_applied_by_hand(self, tmp_path):
        # DICOM PS3.3 C.11.2.1.2: of a window of 2601 about 2050.5, 750 and less is black, 3350 and more is white.
        window = {"WindowCenter": [2050.5, 9], "WindowWidth": [2601, 9]}
        steps = np.array([[0, 750, 1400], [2050, 3350, 4095]], np.uint16)
        read = read_image(dicom(tmp_path / "a.dicom", steps, **window))
        assert read.tolist() == [[0, 0, 64], [128, 255, 255]]
        inverted = read_image(dicom(tmp_path / "b.dicom", steps, "MONOCHROME1", **window))
        np.testing.assert_allclose(inverted.astype(int), 255 - read.astype(int), atol=1)

    def test_a_voi_lut_counts_more_than_a_window(self, tmp_path):
        lut = Dataset()
        lut.LUTDescriptor = [4, 0, 8]
        lut.add_new("LUTData", "US", [0, 20, 250, 255])
        path = dicom(tmp_path / "a.dicom", np.arange(4, dtype=np.uint16).reshape(2, 2), WindowCenter=2, WindowWidth=4)
        found = dcmread(path)
        found.VOILUTSequence = [lut]
        found.save_as(path)
        assert read_image(path).tolist() == [[0, 20], [250, 255]]

    def test_the_modality_lut_comes_before_the_window(self, tmp_path):
        # Twice the stored value less 1000: only then does the window of 0 to 2000 mean 500 to 1500.
        rescale = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000.5, "WindowWidth": 2001}
        steps = np.array([[0, 500], [1000, 1500]], np.uint16)
        assert read_image(dicom(tmp_path / "a.dicom", steps, **rescale)).tolist() == [[0, 0], [128, 255]]

    def test_packed_as_jpeg_2000(self, tmp_path):
        values = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
        path = dicom(tmp_path / "a.dicom", values)
        expected = read_image(path)
        stored = io.BytesIO()
        Image.fromarray(values).save(stored, "jpeg2000", irreversible=False, no_jp2=True)
        found = dcmread(path)
        found.file_meta.TransferSyntaxUID = JPEG2000Lossless
        found.PixelData = encapsulate([stored.getvalue()])
        found["PixelData"].is_undefined_length = True
        found.BitsStored, found.HighBit = 16, 15
        found.save_as(path)
        np.testing.assert_array_equal(read_image(path), expected)

    def test_the_name_has_no_say(self, tmp_path):
        path = dicom(tmp_path / "a.png", self.values)
        assert (image_size(path), read_image(path)[1, 1]) == ((2, 2), 255)
        Image.fromarray(ramp(3, 4)).save(tmp_path / "b.dcm", "png")
        assert (image_size(tmp_path / "b.dcm"), read_image(tmp_path / "b.dcm")[0, 0]) == ((3, 4), 60)

    @pytest.mark.parametrize(
        ("elements", "message"),
        [
            ({"PhotometricInterpretation": "RGB"}, "a grey image is needed, this one is RGB"),
            ({"NumberOfFrames": 2, "PixelData": bytes(16)}, r"one frame is needed, this one has the shape \(2, 2, 2\)"),
            ({"PixelData": bytes(3)}, "number of bytes of pixel data is less"),
            ({"Rows": 0}, r"0 × 2 pixels"),
            ({"Rows": 60_000, "Columns": 60_000}, r"60000 × 60000 pixels"),
            ({"BitsAllocated": 13}, "'Bits Allocated' value of '13' is invalid"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path, elements, message):
        path = dicom(tmp_path / "a.dicom", self.values, **elements)
        with pytest.raises(ValueError, match=rf"a\.dicom: not a readable .*{message}"):
            read_image(path)

    def test_a_packing_that_nothing_installed_reads_says_what_would(self, tmp_path):
        path = dicom(tmp_path / "a.dicom", self.values)
        found = dcmread(path)
        found.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        found.PixelData = encapsulate([bytes(8)])
        found["PixelData"].is_undefined_length = True
        found.save_as(path)
        with pytest.raises(ValueError, match=r"a\.dicom: not a readable image .*pylibjpeg"):
            read_image(path)

    def test_without_pydicom_it_says_how_to_install_it(self, tmp_path, monkeypatch):
        path = dicom(tmp_path / "a.dicom", self.values)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        for read in (read_image, image_size):
            with pytest.raises(ModuleNotFoundError, match=r"a\.dicom is a DICOM file: .*python -m pip install pydicom"):
                read(path)
        # Other images do not need it.
        Image.fromarray(ramp(3, 4)).save(tmp_path / "b.png")
        assert read_image(tmp_path / "b.png").shape == (3, 4)

    @settings(max_examples=60)
    @given(st.data())
    @pytest.mark.filterwarnings("ignore")
    def test_damaged_bytes_never_raise_anything_else(self, data):
        with tempfile.TemporaryDirectory() as folder:
            path = dicom(Path(folder) / "x.dicom", self.values, WindowCenter=2000, WindowWidth=3000)
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(content[: data.draw(st.integers(100, len(content)))])
            for read in (read_image, image_size):
                with contextlib.suppress(ValueError):
                    read(path)


class TestStudy:
    def test_pixels_of_memory_and_of_a_file(self, tmp_path):
        Image.fromarray(ramp(8, 8)).save(tmp_path / "a.png")
        assert study().pixels()[0, 0] == 7
        assert study(array=None, path=tmp_path / "a.png").pixels()[0, 0] == 60
        with pytest.raises(ValueError, match="study s has neither pixels nor a file"):
            study(array=None).pixels()

    def test_labels_count_present_findings_only(self):
        one = study(findings=(Finding("Edema"), Finding("Pneumonia", present=False), Finding("Edema", "again")))
        assert dict(zip(FINDINGS, one.labels(), strict=True)) == {name: name == "Edema" for name in FINDINGS}
        assert one.labels().dtype == np.float32

    def test_studies_can_be_keys(self):
        one = study(findings=(Finding("Edema", mask=np.ones((8, 8), dtype=bool)),), attributes={"age": 3.0})
        assert {one: 1}[replace(one)] == 1

    def test_phrases_are_present_findings_with_a_place(self):
        mask = np.zeros((8, 8), dtype=bool)
        mask[2, 2] = True
        findings = (
            Finding("Edema", "edema", mask=mask),
            Finding("Pneumonia", "pneumonia", boxes=(Box(1, 1, 2, 2),)),
            Finding("Pneumothorax", "no pneumothorax", present=False, boxes=(Box(1, 1, 2, 2),)),
            Finding("Atelectasis", "atelectasis"),
            Finding("Consolidation", "consolidation", mask=np.zeros((8, 8), dtype=bool)),
        )
        rows = phrases([study("a", findings=findings), study("b"), study("c", findings=findings[1:2])])
        assert [row.key for row in rows] == ["a/Edema/edema", "a/Pneumonia/pneumonia", "c/Pneumonia/pneumonia"]
        assert len({row.key for row in rows}) == len(rows)


class TestToImages:
    def test_one_bad_among_many_is_left_out_and_listed(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
        studies = [study(str(i), array=np.full((8, 8), i, np.uint8)) for i in range(20)]
        studies[13] = study("13", array=None, path=tmp_path / "bad.png")
        images, kept, skipped = to_images(studies, 8)
        assert images.shape == (19, 8, 8)
        assert images.dtype == np.uint8
        assert [int(s.id) for s in kept] == images[:, 0, 0].tolist() == [i for i in range(20) if i != 13]
        assert len(skipped) == 1
        assert skipped[0].startswith(f"13: {tmp_path / 'bad.png'}: not a readable image")

    def test_a_file_of_another_shape_than_its_frame_is_left_out(self):
        _, kept, skipped = to_images([study("a"), study("b", array=np.zeros((8, 30), np.uint8))], 4)
        assert [s.id for s in kept] == ["a"]
        assert "b: image is 8 × 30, another shape than its frame 8 × 8" in skipped[0]

    def test_all_bad_is_fatal(self, tmp_path):
        studies = [study(str(i), array=None, path=tmp_path / f"{i}.png") for i in range(3)]
        with pytest.raises(ValueError, match=r"none of 3 images could be read; the first: 0: .*0\.png"):
            to_images(studies, 8)

    def test_no_study_is_no_image(self):
        images, kept, skipped = to_images([], 16)
        assert (images.shape, images.dtype, kept, skipped) == ((0, 16, 16), np.uint8, [], [])

    def test_a_progress_bar_around_the_studies_sees_each(self):
        seen = []
        images, _, _ = to_images((seen.append(s.id) or s for s in [study("a"), study("b")]), 8)
        assert (seen, len(images)) == (["a", "b"], 2)

    def test_a_chunk_may_have_no_image_at_all(self, tmp_path):
        images, kept, skipped = to_images([study("a", array=None, path=tmp_path / "a.png")], 8, allow_none=True)
        assert (images.shape, kept, len(skipped)) == ((0, 8, 8), [], 1)


class TestChangeToken:
    def test_of_an_array_is_its_content(self):
        token = study().change_token()
        assert token == study().change_token() == json.loads(json.dumps(token))
        changed = np.full((8, 8), 7, np.uint8)
        changed[3, 3] = 8
        others = [
            study(array=changed),
            study(array=np.full((4, 16), 7, np.uint8)),
            study("t"),
            study(size=(16, 16)),
        ]
        assert len({json.dumps(s.change_token()) for s in (study(), *others)}) == 5
        assert study(array=np.asfortranarray(changed)).change_token() == study(array=changed).change_token()

    def test_of_a_file_is_its_size_and_time_of_change(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(b"four")
        one = study(array=None, path=path)
        token = one.change_token()
        assert token == one.change_token() == json.loads(json.dumps(token))
        # The same length, later: an image that was corrected in place.
        path.write_bytes(b"five")
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert one.change_token() != token
        path.write_bytes(b"longer")
        os.utime(path, ns=(0, token[-1]))
        assert one.change_token() != token
        path.unlink()
        assert one.change_token() == ["s", [8, 8]]


class TestSplit:
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}  # noqa: RUF012

    def many(self, patients: int) -> list[str]:
        return [f"patient {p}" for p in range(patients)]

    def test_every_patient_has_one_split_and_every_split_has_patients(self):
        splits = split_patients(self.many(200) * 3, self.fractions)
        assert [*splits] == self.many(200)
        assert {*splits.values()} == {*self.fractions}

    def test_a_patients_split_does_not_depend_on_the_others(self):
        every = split_patients(self.many(300), self.fractions)
        assert split_patients(self.many(300)[::-7], self.fractions).items() <= every.items()

    def test_the_split_of_a_patient_stays_for_good(self):
        # From runs made before: another rule would move patients from train to test.
        splits = split_patients(["00000001", "00000002", "CXR1", "10000032"], self.fractions)
        assert splits == {"00000001": "test", "00000002": "train", "CXR1": "test", "10000032": "train"}

    def test_fractions_come_out_and_seeds_differ(self):
        first, second = ([*split_patients(self.many(4000), self.fractions, seed).values()] for seed in (0, 1))
        for name, fraction in self.fractions.items():
            error = (fraction * (1 - fraction) / 4000) ** 0.5
            assert first.count(name) / 4000 == pytest.approx(fraction, abs=4 * error)
        assert first != second

    def test_a_split_of_nothing_gets_nobody(self):
        assert {*split_patients(self.many(500), {"none": 0.0, "all": 1.0, "last": 0.0}).values()} == {"all"}
