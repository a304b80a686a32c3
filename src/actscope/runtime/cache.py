"""The cache directory of one user: results that can be made again, kept because making them takes long."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from actscope.errors import RingError, SettingsError
from actscope.runtime.private_files import check_private_dir
from actscope.runtime.writable import can_create

log = logging.getLogger("actscope.runtime")

_told: set[Path] = set()


def cache_place(*parts: str, reuse: bool = True) -> Path:
    """Return a directory of the cache, which need not exist.

    It is in $XDG_CACHE_HOME/actscope, by default ~/.cache/actscope. Where that cannot be written to, or there is no home
    directory, it is in /tmp/actscope-cache-<uid> ($TMPDIR in place of /tmp if set), which is logged once.

    Args:
        *parts: Names of the directory and its parents in the cache.
        reuse: Whether a directory that exists will do although it cannot be written to.

    Raises:
        SettingsError: The cache cannot be written to, and no directory for temporary files can either, or it is not private.
    """
    home = _home()
    if home is not None:
        place = home.joinpath(*parts)
        if (reuse and os.path.isdir(place)) or can_create(place):
            return place
    return _substitute(home).joinpath(*parts)


def give_matplotlib_a_cache() -> None:
    """Set MPLCONFIGDIR to a directory of the cache where matplotlib could not write to its own. Call before it is imported.

    Without it, matplotlib makes a directory in each process, builds its list of fonts there again, and logs two lines about it.
    """
    if os.environ.get("MPLCONFIGDIR"):
        return
    home = os.environ.get("HOME", "")
    own = (os.environ.get(name) or os.path.join(home, usual) for name, usual in _OF_MATPLOTLIB.items())
    if home and all(can_create(Path(place, "matplotlib")) for place in own):
        return
    try:
        place = cache_place("matplotlib", reuse=False)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, SettingsError):  # there is no place at all, which matplotlib says in its own words
        return
    os.environ["MPLCONFIGDIR"] = str(place)


#: Variables of matplotlib's directories for settings and for its cache, and where they are in the home directory by default.
_OF_MATPLOTLIB = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}


def temporary_root() -> Path:
    """Return the directory for temporary files. Raises SettingsError, which names TMPDIR, if none can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise SettingsError(
            "no directory for temporary files can be written to: set TMPDIR to one that this user can write to"
        ) from error


def _home() -> Path | None:
    """Return the cache as it is set, or None without a home directory."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "actscope"
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and this user has no entry in the password database
        return None
    return home / ".cache" / "actscope" if home.is_absolute() else None


def _substitute(home: Path | None) -> Path:
    why = "there is no home directory" if home is None else f"{home} cannot be written to"
    try:
        place = temporary_root() / f"actscope-cache-{os.geteuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        check_private_dir(place)
    except (OSError, SettingsError) as error:
        told = error.strerror if isinstance(error, OSError) and not isinstance(error, RingError) else error
        raise SettingsError(f"{why}, and no cache can be made in its place ({told}): set XDG_CACHE_HOME") from error
    if place not in _told:
        _told.add(place)
        log.warning("%s: the cache is %s, which may not last; set XDG_CACHE_HOME to keep it elsewhere", why, place)
    return place
