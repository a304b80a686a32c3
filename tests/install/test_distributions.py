"""The wheel and the source distribution have what they should, and nothing by accident."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_string
from pathlib import Path

import pytest
from readme_renderer import markdown

ROOT = Path(__file__).parents[2]
PAGE = "actscope/gateway/static/index.html"
#: What of the repository is not in the source distribution.
LEFT_OUT = (".ci/", ".editorconfig", ".pre-commit-config.yaml")


def hatch(where: Path, target: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Build a target of the project at `where`, as `pip wheel` and `python -m build` do."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`built("wheel")`: the file of a target, built once."""
    made: dict[str, Path] = {}

    def build(target: str) -> Path:
        if target not in made:
            out = tmp_path_factory.mktemp(target)
            done = hatch(ROOT, target, out)
            assert done.returncode == 0, done.stdout + done.stderr
            (made[target],) = out.iterdir()
        return made[target]

    return build


def names_in(sdist: Path) -> set[str]:
    """The files of a source distribution, without its top folder."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def listed(*options: str) -> set[str]:
    """The files that git tracks, or others by its options, and that are there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: a source distribution has no list of its files")
    command = ["git", "ls-files", "-z", *options]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in out.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_carries_the_model_its_probes_and_the_page(built: Callable[[str], Path]) -> None:
    names = zipfile.ZipFile(built("wheel")).namelist()
    for needed in (
        "actscope/engines/builtin/model/model.safetensors",
        "actscope/engines/builtin/model/tokenizer.json",
        "actscope/engines/builtin/model/chat_template.jinja",
        "actscope/engines/builtin/probes/danger.safetensors",
        "actscope/metrics/bpf/programs/blockio.bpf.o",
        "actscope/metrics/bpf/programs/system.bpf.o",
        "actscope/metrics/bpf/programs/system.bpf.c",
        "actscope/py.typed",
        PAGE,
    ):
        assert needed in names
    assert {name.partition("/")[0] for name in names} == {
        "actscope",
        f"actscope-{version_of(built('wheel'))}.dist-info",
    }


def version_of(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def test_the_sdist_is_the_repository_with_the_built_page(built: Callable[[str], Path]) -> None:
    """Docs, tests, Makefile, constraints and scripts are there, so that it builds and tests; nothing else is, by accident."""
    names = names_in(built("sdist")) - {"PKG-INFO"}
    page = {name for name in names if name.startswith("src/actscope/gateway/static/")}
    assert f"src/{PAGE}" in page
    assert {name for name in listed() if not name.startswith(LEFT_OUT)} - names == set()
    assert names - page - listed() - listed("--others", "--exclude-standard") == set()  # others: what is being written


def test_a_wheel_of_the_sdist_is_the_same_as_one_of_the_repository(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    with tarfile.open(built("sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    done = hatch(source, "wheel", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(zipfile.ZipFile(built("wheel")).namelist())


@pytest.mark.parametrize("target", ["wheel", "sdist"])
@pytest.mark.parametrize("lost", ["index.html", "assets"])
def test_without_its_page_nothing_is_built(target: str, lost: str, tmp_path: Path) -> None:
    """Not without the page, and not with a page whose files are gone; the build says what to type."""
    project = small_copy(tmp_path)
    gone = project / "src" / "actscope" / "gateway" / "static" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    done = hatch(project, target, tmp_path / "out")
    assert done.returncode != 0 and "make page" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_an_editable_installation_needs_no_page(tmp_path: Path) -> None:
    """`pip install --editable .` comes before the page is built."""
    project = small_copy(tmp_path)
    shutil.rmtree(project / "src" / "actscope" / "gateway" / "static")
    settings = (
        project / "pyproject.toml"
    )  # a path, and not import hooks, for which hatchling would need another package
    packages = 'packages = ["src/actscope"]'
    settings.write_text(settings.read_text().replace(packages, f'{packages}\ndev-mode-dirs = ["src"]'))
    code = "from hatchling.build import build_editable; print(build_editable('out'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith(".whl"), done.stderr


def small_copy(to: Path) -> Path:
    """Copy what a build reads, with the built page and only the first files of the package."""
    project = to / "project"
    static = project / "src" / "actscope" / "gateway" / "static"
    shutil.copytree(ROOT / "src" / "actscope" / "gateway" / "static", static)
    for name in (
        "pyproject.toml",
        "hatch_build.py",
        "README.md",
        "LICENSE",
        "src/actscope/__init__.py",
        "src/actscope/_version.py",
    ):
        shutil.copy(ROOT / name, project / name)
    return project


def test_the_readme_on_pypi_has_no_relative_link(built: Callable[[str], Path]) -> None:
    """PyPI renders it, and every link and picture leads to the repository at this version's tag."""
    wheel = built("wheel")
    metadata = zipfile.ZipFile(wheel).read(f"actscope-{version_of(wheel)}.dist-info/METADATA").decode()
    message = message_from_string(metadata)
    assert message["Description-Content-Type"] == "text/markdown"
    html = markdown.render(str(message.get_payload()))
    assert html is not None
    targets = re.findall(r'(?:href|src|srcset)="([^"]+)"', html)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    here = [target for target in targets if f"/actscope/actscope/blob/v{version_of(wheel)}/" in target]
    pictures = [target for target in targets if target.endswith(".png")]
    assert here and pictures
    for target in (*here, *pictures):
        assert (ROOT / target.partition(f"/v{version_of(wheel)}/")[2]).is_file(), target
