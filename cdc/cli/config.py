"""`cdc config`: prints the samples of deploy/, for an installation that has no checkout."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.cli.printing import print_table
from cdc.errors import Invalid

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

app = typer.Typer(help="Samples of the configuration, units, alerts and more: sample.", no_args_is_help=True)


class Sample(StrEnum):
    """The names of the samples; each stands for a file or a folder of deploy/."""

    CONFIGURATION = "cdc.toml"
    SYSTEMD = "systemd"
    ALERTS = "alerts"
    PROMETHEUS = "prometheus"
    GRAFANA = "grafana"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"


_SAMPLES = {
    Sample.CONFIGURATION: ("cdc.toml", "every option, with its default"),
    Sample.SYSTEMD: ("systemd", "the unit, its user, the timers that prove the archive, and waltier-cdc"),
    Sample.ALERTS: ("prometheus/alerts.yml", "alert rules for Prometheus"),
    Sample.PROMETHEUS: ("prometheus", "the same with promtool's tests of them, and a job that scrapes"),
    Sample.GRAFANA: ("grafana/dashboard.json", "a dashboard"),
    Sample.COMPOSE: ("compose.yaml", "a first try with all servers; builds its image in a checkout"),
    Sample.KUBERNETES: ("kubernetes", "manifests, for kubectl apply -k"),
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a sample; `name` is its path within the sample."""

    name: str
    content: bytes


def _sample_named(name: str) -> Sample:
    """Raises Invalid, which names all."""
    try:
        return Sample(name)
    except ValueError:
        raise Invalid(
            f"{name!r} is no sample", detail=f"There are {', '.join(Sample)}.", hint="cdc config sample --list"
        ) from None


def _directory(text: str) -> Path:
    """Raises Invalid for what cannot be a directory."""
    if not text:
        raise Invalid("--out is empty", hint="cdc config sample --out a-new-directory")
    if Path(text).exists() and not Path(text).is_dir():
        raise Invalid(f"{text} is not a directory", hint="cdc config sample --out a-new-directory")
    return Path(text)


@app.command()
def sample(
    name: Annotated[
        Sample,
        typer.Argument(
            help="Which one; --list tells them apart.",
            parser=_sample_named,
            metavar="NAME",
            autocompletion=lambda: list(Sample),
        ),
    ] = Sample.CONFIGURATION,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the files into this directory; none is overwritten.", parser=_directory, metavar="DIR"
        ),
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the samples and their files.")] = False,
) -> None:
    """Print the sample configuration, or another sample; several files each with its name before it."""
    if only_list and out is not None:
        raise Invalid("--list writes nothing, so --out has no use", hint="cdc config sample --list")
    if only_list:
        print_table(_list())
    elif out is not None:
        _write(name, list(_files(name)), out)
    else:
        _print(list(_files(name)))


def _list() -> Iterator[tuple[str, str, str]]:
    yield "sample", "files", "what it is"
    for name, (_, about) in _SAMPLES.items():
        first, *others = _files(name)
        yield name, f"{len(others) + 1} files" if others else first.name, about


def _files(name: Sample) -> Iterator[_File]:
    """The files of a sample by name. `cdc/deploy` is the checkout's deploy/, in a wheel a copy of it."""
    from importlib.resources import files

    path, _ = _SAMPLES[name]
    found = files("cdc").joinpath("deploy").joinpath(path)
    yield from _files_in(found, "") if found.is_dir() else [_File(found.name, found.read_bytes())]


def _files_in(folder: "Traversable", prefix: str) -> Iterator[_File]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files_in(entry, f"{prefix}{entry.name}/")
        else:
            yield _File(prefix + entry.name, entry.read_bytes())


def _print(found: list[_File]) -> None:
    """Print one file as it is, several with a heading each. In a sample of several files, `#` begins a comment."""
    for file in found:
        heading, end = ("", "") if len(found) == 1 else (f"# ==> {file.name}\n", "\n")
        print(heading + file.content.decode(), end=end)


def _write(name: Sample, found: list[_File], out: Path) -> None:
    """Write all files, or none where one of them is there already. Raises Invalid."""
    there = [str(out / file.name) for file in found if (out / file.name).exists()]
    if there:
        raise Invalid(
            f"{', '.join(there)}: already there, and a sample overwrites nothing",
            hint=f"cdc config sample {name} --out a-new-directory; or, to compare: cdc config sample {name}",
        )
    for file in found:
        path = out / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as written:
                written.write(file.content)
            path.chmod(0o755 if file.content.startswith(b"#!") else 0o644)
        except OSError as error:
            raise Invalid(
                f"{path} cannot be written ({error.strerror})", hint=f"cdc config sample {name} --out a-new-directory"
            ) from None
        print(f"wrote {path}")
