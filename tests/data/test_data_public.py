"""Public sets: mirror first, then the cache, then the network; verified each time; nothing half-written stays."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import SourceConfig
from tauon.data.cache import cache_in
from tauon.data.download import members_digest
from tauon.data.files import read_bytes
from tauon.data.progress import listening
from tauon.data.sources.cifar import cifar_arrays
from tauon.data.sources.registry import PUBLIC, PublicFile, PublicSet
from tauon.errors import ChecksumError, DataError, RecipeError

CONTENT = b"To be, or not to be.\n" * 5000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """(folder that is served, its address, requests so far)."""
    root = tmp_path / "site"
    root.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[:1000])
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TAUON_DATA", raising=False)
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def announce(monkeypatch: pytest.MonkeyPatch, *urls: str, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> SourceConfig:
    file = PublicFile("bard/input.txt.gz", urls, sha256, len(CONTENT))
    monkeypatch.setitem(PUBLIC, "bard", PublicSet("The Bard", "public domain", "http://x", "text", {"train": (file,)}))
    return parse(SourceConfig, {"kind": "public", "name": "bard"})


def read(source: SourceConfig) -> bytes:
    return "".join(d.text for d in source.documents()).encode()


@pytest.mark.parametrize("packed", [False, True])
def test_a_download_is_verified_kept_and_not_repeated(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    root, address, asked = site
    (root / "input").write_bytes(gzip.compress(CONTENT) if packed else CONTENT)
    source = announce(monkeypatch, f"{address}/input")
    told: list[tuple[str, int, int | None]] = []
    with listening(lambda *t: told.append(t)):
        assert read(source) == CONTENT
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2] == (root / "input").stat().st_size
    kept = cache / "public" / "bard"
    assert os.listdir(kept) == ["input.txt"]
    assert (kept / "input.txt").read_bytes() == CONTENT
    assert oct(kept.stat().st_mode & 0o777) == oct(cache.stat().st_mode & 0o777) == "0o700"
    assert read(source) == CONTENT
    assert asked == ["/input"]


def test_the_next_address_is_tried(site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, address, asked = site
    (root / "input").write_bytes(CONTENT)
    assert read(announce(monkeypatch, f"{address}/gone", f"{address}/short", f"{address}/input")) == CONTENT
    assert asked == ["/gone", "/short", "/input"]


def test_no_address_that_works_names_each_and_the_way_out(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address, _ = site
    with pytest.raises(
        DataError, match=r"gone: .*[Nn]ot found.*the connection ended after 1,000 of.*put the decompressed file at .*TAUON_DATA"
    ):
        read(announce(monkeypatch, f"{address}/gone", f"{address}/short"))
    assert os.listdir(cache / "public" / "bard") == []


def test_other_content_than_published_is_refused_and_not_kept(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, address, _ = site
    (root / "input").write_bytes(CONTENT + b"!")
    with pytest.raises(ChecksumError, match=r"/input: got 105,001 bytes with sha256 .* expected 105,000"):
        read(announce(monkeypatch, f"{address}/input"))
    assert os.listdir(cache / "public" / "bard") == []


def test_a_download_without_end_is_cut_off(site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, address, _ = site
    (root / "long").write_bytes(bytes(3_000_000))
    (root / "bomb").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DataError, match=r"long: the server sends more than the published 105,000 bytes"):
        read(announce(monkeypatch, f"{address}/long"))
    with pytest.raises(ChecksumError, match=r"bomb: got 105,001 bytes"):
        read(announce(monkeypatch, f"{address}/bomb"))


def test_a_changed_file_in_the_cache_is_found(site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, address, _ = site
    (root / "input").write_bytes(CONTENT)
    source = announce(monkeypatch, f"{address}/input")
    read(source)
    (cache / "public" / "bard" / "input.txt").write_bytes(CONTENT.replace(b"not", b"now"))
    with pytest.raises(ChecksumError, match=r"input\.txt: sha256 .*Delete it"):
        read(source)


def test_the_mirror_comes_first_and_is_verified_too(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, address, asked = site
    mirror = tmp_path / "mirror" / "bard"
    mirror.mkdir(parents=True)
    (mirror / "input.txt.gz").write_bytes(gzip.compress(CONTENT))
    monkeypatch.setenv("TAUON_DATA", str(mirror.parent))
    source = announce(monkeypatch, f"{address}/input")
    assert read(source) == CONTENT
    assert asked == []
    assert not cache.exists()
    (mirror / "input.txt.gz").write_bytes(gzip.compress(b"else"))
    with pytest.raises(ChecksumError, match=r"input\.txt\.gz: sha256 of the decompressed content"):
        read(source)


def test_only_web_addresses_are_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="only http and https"):
        read(announce(monkeypatch, "file:///etc/passwd"))


def test_the_recipes_cache_folder_is_used_for_downloads(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, address, _ = site
    (root / "input").write_bytes(CONTENT)
    with cache_in(str(tmp_path / "mine")):
        read(announce(monkeypatch, f"{address}/input"))
    assert (tmp_path / "mine" / "public" / "bard" / "input.txt").is_file()
    assert not cache.exists()


def test_a_cache_that_cannot_be_made_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="cannot create the cache folder"):
        read(announce(monkeypatch, "http://127.0.0.1:9/x"))


def test_unknown_names_and_parts_are_refused() -> None:
    with pytest.raises(RecipeError, match="no public set is called 'minst'; did you mean 'mnist'"):
        parse(SourceConfig, {"kind": "public", "name": "minst"})
    with pytest.raises(RecipeError, match="mnist has no part 'validation'"):
        parse(SourceConfig, {"kind": "public", "name": "mnist", "split": "validation"})


def test_every_registered_file_is_in_the_mirror_as_registered() -> None:
    root = Path(os.environ.get("TAUON_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    for known in PUBLIC.values():
        for files in known.parts.values():
            for file in files:
                if not (root / file.mirror).is_file():
                    assert file.urls, f"{file.mirror} is neither in the mirror nor at an address"
                    continue
                content = read_bytes(root / file.mirror)
                if known.output_kind == "signals":  # a zip, known by what is in it
                    assert members_digest(content) == file.sha256 and len(content) < file.bytes
                    continue
                assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


def test_published_sets_have_their_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Articles of WikiText-2: Merity et al. 2016, table 1. Tokens: each line end counts as one (<eos>)."""
    root = Path(os.environ.get("TAUON_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    monkeypatch.setenv("TAUON_DATA", str(root))
    for part, articles, tokens in (("train", 600, 2_088_628), ("validation", 60, 217_646), ("test", 60, 245_569)):
        documents = list(parse(SourceConfig, {"kind": "public", "name": "wikitext-2", "split": part}).documents())
        assert len(documents) == articles
        assert sum(len(d.text.split()) + d.text.count("\n") for d in documents) == tokens
    mnist = parse(SourceConfig, {"kind": "public", "name": "mnist"})
    held = mnist.part("test")
    assert held is not None
    assert mnist.part("validation") is None
    assert held.arrays().features.shape == (10_000, 1, 28, 28)
    assert held.part("test") is None
    for name, sizes in (
        ("cifar10-subset", {"train": 10_000, "test": 2_000}),
        ("pneumoniamnist", {"train": 4_708, "validation": 524, "test": 624}),
    ):
        for part, size in sizes.items():
            table = parse(SourceConfig, {"kind": "public", "name": name, "split": part}).arrays()
            assert len(table) == size and table.features.shape[1:] == ((3, 32, 32) if "cifar" in name else (1, 28, 28))
    assert np.bincount(table.targets).tolist() == [234, 390] and table.label_names == ("normal", "pneumonia")  # Yang et al. 2023


def cifar(rows: int = 10_000, missing: str = "") -> bytes:
    """A tar like that of CIFAR-10's binary version, with pictures of one byte each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
            if name == missing:
                continue
            record = np.full((rows, 3073), number, np.uint8)
            record[:, 0] = np.arange(rows) % 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = record.size
            archive.addfile(info, io.BytesIO(record.tobytes()))
    return out.getvalue()


def test_all_of_cifar10_is_read_from_its_binary_tar(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, address, asked = site
    packed = cifar()
    (root / "cifar").write_bytes(packed)
    file = PublicFile("cifar10/cifar-10-binary.tar.gz", (f"{address}/cifar",), hashlib.sha256(packed).hexdigest(), len(packed), packed=True)
    known = PUBLIC["cifar10"]
    monkeypatch.setitem(PUBLIC, "cifar10", replace(known, parts={"train": (file,), "test": (file,)}))
    source = parse(SourceConfig, {"kind": "public", "name": "cifar10"})
    train, test = source.arrays(), source.part("test").arrays()  # type: ignore[union-attr]
    assert (train.features.shape, test.features.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.features[::10_000, 1, 2, 3].tolist() == [0, 1, 2, 3, 4] and int(test.features.max()) == 5
    assert train.label_names[3] == "cat" and train.targets[:11].tolist() == [*range(10), 0]
    assert asked == ["/cifar"] and os.listdir(cache / "public" / "cifar10") == ["cifar-10-binary.tar.gz"]
    assert source.fingerprint() != source.part("test").fingerprint()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (cifar(missing="data_batch_3.bin"), "has no member data_batch_3.bin"),
        (cifar(rows=10), "has no member data_batch_1.bin"),
        (cifar()[:-2000], "damaged"),
        (b"x", "not a tar.gz"),
    ],
    ids=["missing", "short", "torn", "no tar"],
)
def test_another_archive_than_cifar10s_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cifar_arrays(content, "there", "train", PUBLIC["cifar10"].label_names)


def test_another_copy_of_a_set_counts_by_the_md5_that_was_published(
    site: tuple[Path, str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PneumoniaMNIST as its authors serve it has other bytes than the mirror's: only its MD5 was published."""
    root, address, _ = site
    buffer = io.BytesIO()
    np.savez(buffer, train_images=np.zeros((4, 28, 28), np.uint8), train_labels=np.array([[0], [1], [0], [1]], np.uint8))
    (root / "npz").write_bytes(buffer.getvalue())
    known = PUBLIC["pneumoniamnist"]
    digest = hashlib.md5(buffer.getvalue(), usedforsecurity=False).hexdigest()
    file = replace(known.parts["train"][0], urls=(f"{address}/npz",), md5=digest)
    monkeypatch.setitem(PUBLIC, "pneumoniamnist", replace(known, parts={"train": (file,)}))
    source = parse(SourceConfig, {"kind": "public", "name": "pneumoniamnist"})
    assert source.arrays().targets.tolist() == [0, 1, 0, 1]
    monkeypatch.setitem(PUBLIC, "pneumoniamnist", replace(known, parts={"train": (replace(file, md5="0" * 32),)}))
    with pytest.raises(ChecksumError):
        source.arrays()
