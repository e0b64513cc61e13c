"""The converter is fetched once, as pinned, or one sentence says why not."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quantkit.checkpoint.converter import kept, provision
from quantkit.checkpoint.converter.fetch import unpack
from quantkit.checkpoint.converter.pins import Pins, load_pins
from quantkit.checkpoint.converter.provision import Converter, find_converter
from quantkit.core.errors import ConverterError, MissingPackageError
from tests.checkpoint.converter.index import FILES, TREE, make_index, write_archive


@dataclass(frozen=True)
class Index:
    folder: Path
    pins: Pins
    trap: Path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder, trap = tmp_path_factory.mktemp("index"), tmp_path_factory.mktemp("trap") / "sprung"
    return Index(folder, make_index(folder, trap), trap)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory, index: Index) -> Path:
    """A cache as the first use leaves it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, cache, index.folder)
        said: list[str] = []
        find_converter(say=said.append, pins=index.pins)
    folder = cache / "quantkit" / "converter"
    assert said == [
        "Fetching llama.cpp's converter (llama-cpp-python 9.9.9) and the transformers it was "
        f"written for, some 100 MB, into {folder}."
    ]
    return cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index, fetched: Path) -> Path:
    """A copy of that cache, elsewhere. Copying is how a machine without network gets it."""
    shutil.copytree(fetched, tmp_path / "copy")
    use(monkeypatch, tmp_path / "copy", index.folder)
    return tmp_path / "copy" / "quantkit" / "converter"


def use(patch: pytest.MonkeyPatch, cache: Path, links: Path) -> None:
    # What a user may have set for other ends, which would refuse everything here.
    (links / "constraints.txt").write_text("llama-cpp-python==1\ntransformers-for-tests==2\n")
    patch.setenv("PIP_CONSTRAINT", str(links / "constraints.txt"))
    patch.setenv("PIP_USER", "1")
    patch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(links))


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be done")


def stop(*_: object) -> None:
    raise StopIteration


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(pins: Pins, error: type[Exception] = ConverterError) -> str:
    with pytest.raises(error) as caught:
        find_converter(pins=pins)
    return str(caught.value)


def test_what_is_fetched_and_that_nothing_of_it_is_run(index: Index, cache: Path) -> None:
    found = find_converter(pins=index.pins)
    assert found == Converter(
        next(cache.glob("source-*")),
        next(cache.glob("packages-*")),
        "llama.cpp of llama-cpp-python 9.9.9",
    )
    assert names(found.tree) == {*FILES, kept.STAMP}
    assert (found.tree / "conversion/base.py").read_text() == FILES["conversion/base.py"]
    assert "transformers_for_tests/__init__.py" in names(found.packages)
    assert not any("nowhere" in name or name.endswith(".pyc") for name in names(found.packages))
    assert not index.trap.exists()
    assert {path.name for path in cache.iterdir()} == {found.tree.name, found.packages.name}


def test_the_second_use_only_reads(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / next(cache.glob("packages-*")) / "__pycache__").mkdir()  # imports leave bytecode
    (next(cache.glob("packages-*")) / "__pycache__" / "a.pyc").write_bytes(b"code")
    monkeypatch.setattr(kept, "hold_folder", forbid)
    find_converter(say=forbid, pins=index.pins)


def test_a_users_own_is_taken_with_the_same_packages(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "llama.cpp"
    for name in FILES:
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).touch()
    shutil.rmtree(next(cache.glob("source-*")))  # is not asked for
    monkeypatch.setattr(provision, "fetch_tree", forbid)
    assert find_converter(own, say=forbid, pins=index.pins) == Converter(
        own, next(cache.glob("packages-*")), f"llama.cpp in {own}"
    )
    (own / "conversion/base.py").unlink()
    with pytest.raises(ConverterError, match="no conversion/base"):
        find_converter(own, pins=index.pins)


def remove(folder: Path) -> None:
    (folder / "conversion/base.py").unlink()


def change(folder: Path) -> None:
    file = folder / "conversion/base.py"
    file.write_text(file.read_text().replace("x", "y"))  # as long as before


def add(folder: Path) -> None:
    (folder / "conversion/more.py").touch()


def link(folder: Path) -> None:
    (folder / "models/templates/a.jinja").unlink()
    (folder / "models/templates/a.jinja").symlink_to("/etc/hostname")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def unstamp(folder: Path) -> None:
    (folder / kept.STAMP).unlink()


@pytest.mark.parametrize("damage", [remove, change, add, link, empty, unstamp])
def test_a_damaged_source_is_not_used(
    index: Index, cache: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(next(cache.glob("source-*")))
    monkeypatch.setattr(provision, "fetch_tree", stop)
    with pytest.raises(StopIteration):
        find_converter(pins=index.pins)


def test_a_damaged_source_is_made_anew(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(cache.glob("source-*"))
    remove(source)
    # What is whole stays as it is.
    monkeypatch.setattr(provision, "fetch_packages", forbid)
    assert find_converter(pins=index.pins).tree == source
    assert names(source) == {*FILES, kept.STAMP}
    find_converter(say=forbid, pins=index.pins)


def test_damaged_packages_are_made_anew_and_what_a_killed_process_left_is_removed(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = cache / ".partial-source-of-another-pin" / "made" / "conversion"
    left.mkdir(parents=True)
    packages = next(cache.glob("packages-*"))
    (packages / "transformers_for_tests/data.txt").write_text("dat")
    monkeypatch.setattr(provision, "fetch_tree", forbid)
    find_converter(pins=index.pins)
    assert (packages / "transformers_for_tests/data.txt").read_text() == "data"
    assert not list(cache.glob(".*"))


def test_one_of_two_processes_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    """Locks are those of open files, so two threads stand for two processes."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    making, waiting = Event(), Event()
    made: list[Path] = []

    def make(into: Path, _: Path) -> None:
        made.append(into)
        (into / "file").write_text("whole")
        making.set()
        waiting.wait()

    folder = kept.Kept(tmp_path / "cache" / "folder", "pin", make)

    def nothing() -> None:
        pass

    with ThreadPoolExecutor() as pool:
        first = pool.submit(kept.provide, tmp_path / "cache", [folder], nothing, forbid)
        making.wait()
        assert not folder.is_whole()
        second = pool.submit(kept.provide, tmp_path / "cache", [folder], forbid, waiting.set)
        first.result()
        second.result()
    assert len(made) == 1
    assert (folder.folder / "file").read_text() == "whole"


def test_another_pin_is_another_folder(index: Index, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "packages.txt"
    other.write_text(index.pins.packages.read_text() + "\n")
    before = find_converter(pins=index.pins).packages
    assert find_converter(pins=replace(index.pins, packages=other)).packages != before
    assert len(list(cache.glob("packages-*"))) == 2


def test_a_source_of_another_hash_is_refused(index: Index, cache: Path) -> None:
    said = refused(replace(index.pins, sha256="0" * 64))
    assert said == (
        "The source archive of llama-cpp-python 9.9.9 from the package index that pip is set to "
        "does not have the sha256 that quantkit pins, so nothing of it is used; find out where it "
        "comes from (pip config list)."
    )
    assert not list(cache.glob("source-0*"))
    assert not list(cache.glob(".*"))


def test_packages_of_another_hash_are_refused(index: Index, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "packages.txt"
    other.write_text("transformers-for-tests==1.0 --hash=sha256:" + "0" * 64)
    said = refused(replace(index.pins, packages=other))
    assert said.startswith("The transformers of llama.cpp's converter from the package index ")
    assert "does not have the sha256" in said
    assert len(list(cache.iterdir())) == 2  # what was there before


def test_an_index_that_lacks_it_is_one_sentence(index: Index, cache: Path) -> None:
    said = refused(replace(index.pins, version="9.9.8"))
    assert said == (
        "The source archive of llama-cpp-python 9.9.8 cannot be fetched (No matching distribution "
        "found for llama-cpp-python==9.9.8); connect to the package index that pip is set to, or "
        "see docs/converter.md for a machine without network."
    )
    assert len(list(cache.iterdir())) == 2


def test_no_network_is_one_sentence(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody answers there
    monkeypatch.setenv("PIP_RETRIES", "1")
    said = refused(index.pins)
    assert "cannot be fetched (no connection to the package index); " in said
    assert not list((tmp_path / "quantkit/converter").iterdir())


def test_a_cache_that_cannot_be_written_is_one_sentence(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quantkit").touch()
    use(monkeypatch, tmp_path, index.folder)
    said = refused(index.pins)
    assert "quantkit/converter, where llama.cpp's converter is kept, cannot be written" in said
    assert "set XDG_CACHE_HOME to another folder" in said


@pytest.mark.usefixtures("cache")
def test_without_the_extra_it_says_how_to_get_it(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "fetch_tree", forbid)
    monkeypatch.setattr(provision, "NEEDED", {"no_such": "nothing", "no_such_either": "none"})
    assert refused(index.pins, MissingPackageError) == (
        "llama.cpp's converter needs nothing and none, which are not installed; "
        "pip install 'quantkit-llm[convert]'."
    )


def test_without_pip_what_is_there_is_used_and_nothing_fetched(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "is_installed", lambda module: module != "pip")
    find_converter(pins=index.pins)
    shutil.rmtree(next(cache.glob("source-*")))
    assert "needs pip, which is not installed; pip install" in refused(
        index.pins, MissingPackageError
    )


def archive(tmp_path: Path, members: dict[str, str], links: dict[str, str] | None = None) -> Path:
    write_archive(tmp_path / "a.tar.gz", members, links)
    return tmp_path / "a.tar.gz"


def test_an_archive_without_a_converter_is_refused(tmp_path: Path) -> None:
    packed = archive(tmp_path, {"top/README": "", f"top/{TREE}/src/llama.cpp": ""})
    with pytest.raises(ConverterError, match=r"has no vendor/llama\.cpp/conversion/base\.py"):
        unpack(packed, TREE, tmp_path / "into")


@pytest.mark.parametrize("target", ["/etc", "../../../.."])
def test_links_that_lead_out_are_not_unpacked(tmp_path: Path, target: str) -> None:
    name = f"top/{TREE}/conversion"
    packed = archive(tmp_path, {f"{name}/base.py": ""}, {f"{name}/out": target})
    with pytest.raises(ConverterError, match=r"a.tar.gz cannot be unpacked"):
        unpack(packed, TREE, tmp_path / "into")


def test_names_that_lead_out_are_not_unpacked(tmp_path: Path) -> None:
    name = f"top/{TREE}/conversion"
    packed = archive(tmp_path, {f"{name}/base.py": "", f"{name}/../../../../out": ""})
    with pytest.raises(ConverterError, match=r"a.tar.gz cannot be unpacked"):
        unpack(packed, TREE, tmp_path / "into" / "here")
    assert not list(tmp_path.rglob("out"))


def test_a_cut_archive_is_one_sentence(tmp_path: Path) -> None:
    packed = archive(tmp_path, {f"top/{TREE}/conversion/base.py": "x" * 10**6})
    packed.write_bytes(packed.read_bytes()[:-500])
    with pytest.raises(ConverterError, match=r"a.tar.gz cannot be unpacked"):
        unpack(packed, TREE, tmp_path / "into")


def test_the_pins_are_vendors() -> None:
    """One line in `vendor/manifest.toml` raises both."""
    import tomllib

    root = Path(__file__).parents[3]
    manifest = tomllib.loads((root / "vendor/manifest.toml").read_text())
    pins, source = load_pins(), manifest["source"]
    assert (pins.package, pins.version, pins.sha256, pins.tree) == (
        source["package"],
        source["version"],
        source["sha256"],
        source["tree"],
    )
    project = tomllib.loads((root / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["vendor/manifest.toml"] == "quantkit/profiles/vendor.toml"
    wanted = dict(pair.split(" ") for pair in pins.wanted.split(", "))
    of_vendor = dict(
        line.split("==") for line in manifest["converter"]["requirements"] if "==" in line
    )
    assert wanted["transformers"] == of_vendor["transformers"]
    assert wanted["sentencepiece"] == of_vendor["sentencepiece"]
    constraints = (root / "constraints.txt").read_text().splitlines()
    assert f"{pins.package}=={pins.version}" in constraints


def test_an_installed_package_has_the_pins_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.core import profiles

    (tmp_path / "vendor.toml").write_text("[source]\nversion = 'inside'")
    monkeypatch.setattr(profiles, "profiles_folder", lambda: tmp_path)
    assert profiles.load_vendor_manifest.__wrapped__() == {"source": {"version": "inside"}}


def test_every_package_has_hashes() -> None:
    """pip demands them; here it would only be found out by who installs the one that has none."""
    lines = load_pins().packages.read_text().replace("\\\n", "").splitlines()
    pinned = [line.split() for line in lines if not line.startswith("#")]
    assert len(pinned) == 5
    for name, *hashes in pinned:
        assert name.count("==") == 1
        assert hashes
        assert all(entry.startswith("--hash=sha256:") for entry in hashes)
