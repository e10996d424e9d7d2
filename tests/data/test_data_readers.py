"""Readers of image folders, CIFAR-10 and token files, on small files made here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.data import Cifar10, ImageFolder, PadCollate, TokenFile, batch_from, class_weights

RECORD = 3073


def write_cifar(path: Path, labels: list[int]) -> np.ndarray:
    records = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), RECORD), np.uint8)
    records[:, 0] = labels
    records.tofile(path)
    return records


def test_cifar_reads_every_record(tmp_path: Path) -> None:
    first = write_cifar(tmp_path / "data_batch_1.bin", [3, 0, 9])
    second = write_cifar(tmp_path / "data_batch_2.bin", [7, 1])
    write_cifar(tmp_path / "test_batch.bin", [5])
    data = Cifar10(tmp_path, mean=(), std=())
    assert len(data) == 5
    assert data.targets == [3, 0, 9, 7, 1]
    for i, record in enumerate([*first, *second]):
        image, label = data[i]
        assert image.shape == (3, 32, 32)
        assert label == record[0]
        assert image[2, 31, 30] == pytest.approx(record[-2] / 255)
        assert image[0, 0, 1] == pytest.approx(record[2] / 255)
    assert len(Cifar10(tmp_path, train=False)) == 1
    scaled = Cifar10(tmp_path)[0][0]
    assert scaled[1, 0, 0] == pytest.approx((first[0, 1 + 1024] / 255 - 0.4822) / 0.2435, rel=1e-5)
    with pytest.raises(IndexError):
        data[5]


def test_cifar_refuses_what_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no data_batch_"):
        Cifar10(tmp_path)
    path = tmp_path / "data_batch_1.bin"
    write_cifar(path, [1, 2])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="6145 bytes, no whole number of records"):
        Cifar10(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        Cifar10(tmp_path)
    write_cifar(path, [1, 10])
    with pytest.raises(InputError, match="record of class 10"):
        Cifar10(tmp_path)
    with pytest.raises(InputError, match="mean has 1 values for 3 channels"):
        Cifar10(tmp_path, mean=(0.5,))
    with pytest.raises(InputError, match="must be positive"):
        Cifar10(tmp_path, std=(1, 0, 1))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_files(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(60000, 60021).astype(dtype).tofile(path)
    data = TokenFile(path, seq=5, dtype=dtype)  # type: ignore[arg-type]
    assert data.tokens == 21
    assert len(data) == 4
    inputs, target = data[3]
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [60015, 60016, 60017, 60018, 60019]
    assert target.tolist() == [60016, 60017, 60018, 60019, 60020]
    overlapping = TokenFile(path, seq=5, dtype=dtype, stride=2)  # type: ignore[arg-type]
    assert len(overlapping) == 8
    assert overlapping[7][1].tolist()[-1] == 60019
    batch, _ = batch_from(data)(3, torch.Generator().manual_seed(0))
    assert batch.shape == (3, 5)
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(InputError, match=r"has token 60005 .* vocabulary has 50000"):
        TokenFile(path, seq=5, dtype=dtype, vocab=50000)[0]  # type: ignore[arg-type]


def test_token_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    with pytest.raises(InputError, match="no such file"):
        TokenFile(path, seq=4)
    path.write_bytes(b"\0" * 9)
    with pytest.raises(InputError, match="9 bytes, no whole number of uint16"):
        TokenFile(path, seq=4)
    path.write_bytes(b"\0" * 8)
    with pytest.raises(InputError, match="has 4 tokens, one sample of seq=4 needs 5"):
        TokenFile(path, seq=4)
    for wrong in ({"seq": 0}, {"seq": 1, "stride": 0}, {"seq": 1, "dtype": "int8"}):
        with pytest.raises(InputError, match="token file"):
            TokenFile(path, **wrong)  # type: ignore[arg-type]


def test_image_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for place, colour in (("b/deep/2.PNG", (0, 0, 255)), ("a/1.png", (255, 0, 0))):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (7, 5), colour).save(path)
    image.new("L", (4, 4), 128).save(tmp_path / "b" / "1.bmp")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    data = ImageFolder(tmp_path, size=6)
    assert data.classes == ("a", "b")
    assert data.targets == [0, 1, 1]
    red, label = data[0]
    assert red.shape == (3, 6, 6)
    assert (label, red.amax(dim=(1, 2)).tolist()) == (0, [1.0, 0.0, 0.0])
    assert torch.all(data[1][0] == 128 / 255)
    grey = ImageFolder(tmp_path, size=4, channels=1, mean=(0.5,), std=(0.5,))
    assert grey[1][0].shape == (1, 4, 4)
    assert float(grey[1][0][0, 0, 0]) == pytest.approx((128 / 255 - 0.5) / 0.5, abs=1e-6)
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match=r"1\.png: cannot read the image"):
        data[0]


def test_folders_that_hold_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopar.data.images.pillow", lambda: None)
    with pytest.raises(InputError, match="no such folder"):
        ImageFolder(tmp_path / "missing", size=4)
    with pytest.raises(InputError, match="has no class folders"):
        ImageFolder(tmp_path, size=4)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a has no images"):
        ImageFolder(tmp_path, size=4)
    with pytest.raises(InputError, match="size=0"):
        ImageFolder(tmp_path, size=0)


def test_without_pillow_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(EnvironmentUnableError, match="needs Pillow"):
        ImageFolder(tmp_path, size=4)


def test_padding() -> None:
    samples = [
        (torch.tensor([1, 2, 3]), torch.tensor([2, 3])),
        (torch.tensor([4]), torch.tensor([5])),
    ]
    inputs, target = PadCollate()(samples)
    assert inputs.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert target.tolist() == [[2, 3, -100], [5, -100, -100]]
    assert PadCollate(multiple=4)(samples)[0].shape == (2, 4)
    assert PadCollate(length=6, inputs=9)(samples)[0][1].tolist() == [4, 9, 9, 9, 9, 9]
    named = PadCollate()([({"x": row}, 1) for row, _ in samples])
    assert named[0]["x"].shape == (2, 3)
    assert named[1].tolist() == [1, 1]
    with pytest.raises(InputError, match="length 3 does not fit in length=2"):
        PadCollate(length=2)(samples)
    with pytest.raises(InputError, match="multiple=0"):
        PadCollate(multiple=0)


def test_class_weights_make_classes_equal() -> None:
    weights = class_weights([0, 0, 0, 1])
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
