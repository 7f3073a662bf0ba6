"""Images of one's own in a folder, or in files that hold many: which there are, the split of each, their pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from benchmarks.base.errors import UserError, unknown
from benchmarks.data.archives import lmdbs, npys, parquets, tars
from benchmarks.data.archives.shards import shards
from benchmarks.data.arrays import FileImages
from benchmarks.data.cache.pictures import FolderPictures, Listing, Origin, Pictures, Words
from benchmarks.data.cache.store import images_of
from benchmarks.data.dataset import Part, Request, Splits, user_path
from benchmarks.data.decoding import ARCHIVE_JUNK, BACKGROUNDS, HIDDEN, RESIZE_RULE, SUFFIXES, Rule
from benchmarks.data.order import SPLIT_NAMES, cut

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in any case, that say which split the images below are of."""
ARCHIVES = (tars.SUFFIX, parquets.SUFFIX, npys.SUFFIX, lmdbs.SUFFIX)
"""Files that hold many images, as the folders of others do."""
REPEATED = "links to what is there already"
BROKEN = "links that lead nowhere"
SHOWN = 3
SHOWN_DIGITS = 20
LARGEST_SIZE = 4096
"""Pixels of a side that `?size=N` may ask for."""


@dataclass
class Search:
    """The image files below a folder: each real file once, links after what they may lead to."""

    folder: Path
    found: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """Links, each with what it leads to."""
    seen: dict[tuple[int, int], Path] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)

    def run(self) -> None:
        """Find all; raises UserError for a folder that cannot be read."""
        try:
            self._visit(self.folder)
            while self.links:
                self._visit(self.links.pop(0))
        except OSError as error:
            raise UserError(f"{error.filename}: expected a folder that can be read: {error.strerror}") from error
        self.found.sort()

    def _visit(self, path: Path) -> None:
        try:
            status = path.stat()
        except OSError:
            self.skipped[BROKEN] += 1
            return
        first = self.seen.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            self.skipped[REPEATED] += 1
            self.repeated.append((self._name(path), self._name(first)))
        elif path.is_dir():
            for entry in sorted(path.iterdir()):
                self._take(entry)
        else:
            self.found.append(self._name(path))

    def _take(self, entry: Path) -> None:
        """Visit a folder, link or image file; count anything else."""
        if entry.name.startswith("."):
            self.skipped[HIDDEN] += 1
        elif entry.name == ARCHIVE_JUNK:
            self.skipped[ARCHIVE_JUNK] += 1
        elif not entry.is_dir() and (entry.suffix.lower() not in SUFFIXES or not (entry.is_file() or _broken(entry))):
            self.skipped[entry.suffix.lower() or "without suffix"] += 1
        elif entry.is_symlink():
            self.links.append(entry)
        else:
            self._visit(entry)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class Found:
    """What a source holds: all its pictures, and those of given names in their order.

    A cut by hash shuffles; `as_found` keeps the order inside splits, for what is read by groups.
    """

    search: Search
    pictures: Callable[[Sequence[str]], Pictures]
    as_found: bool = False


Splitting = Callable[[Search], tuple[dict[str, list[str]], str]]
"""The names of each split, and by which rule."""
Options = Mapping[str, str]


@dataclass(frozen=True)
class Kind:
    """Files that hold many pictures each: which of them a path stands for, what is in them, options beside the rule."""

    files: Callable[[Path], Sequence[Path]]
    look: Callable[[Path, Options], Found]
    options: tuple[str, ...] = ()


def read_folder(request: Request) -> Splits:
    """Image files below a folder, as `decode` reads them: grey if every file is grey, else colour.

    Folders named as in `SPLIT_FOLDERS` are the splits; what is missing of validation and test is cut from train by
    the hash of the relative path, and so are all three where no folder has such a name (80 / 10 / 10 %). Without
    `?size=N` all images must have one size; with it the shorter side becomes N (antialiased bicubic) and the centre
    N x N is kept. Hidden files and files of other suffixes are skipped, links followed once; the note counts both.
    """
    folder, rule, _ = _asked(request)
    return read_origin(folder_origin(folder, rule))


def read_archive(kind: str, request: Request) -> Splits:
    """Pictures in files of a kind, or in all those below a folder, under the rules of `read_folder`.

    Those of a folder are named by file and place in it ("train-0.tar/7.jpg"); words of a file's name name splits as
    well ("data/train-00000-of-00004.parquet").
    """
    path, rule, options = _asked(request, *KINDS[kind].options)
    return read_origin(archive_origin(kind, path, rule, options))


def folder_origin(folder: Path, rule: Rule, splits: Splitting | None = None) -> Origin:
    """The image files below a folder."""
    search = _searched(folder)
    found = Found(search, lambda names: FolderPictures(folder, names))
    besides = f"{search.skipped} {search.repeated}"  # what the files do not say
    files = [folder / name for name in search.found]
    return Origin(folder, files, rule, f"folder {besides}", lambda: _listed_by_name(found, rule, splits or splits_of))


def folder_images(folder: Path) -> FileImages:
    """All image files below a folder in the order of their names, decoded as `read_folder` does, as no data set.

    Raises:
        UserError: no folder of images, or of several sizes.
    """
    search = _searched(folder)
    count, rule = len(search.found), Rule()
    words = Words(f"{count} files of {folder}")
    listing = Listing(FolderPictures(folder, search.found), (count, 0, 0), words)
    files = [folder / name for name in search.found]
    images = images_of(Origin(folder, files, rule, "folder in the order of names", lambda: listing))
    return FileImages(images.pixels, images.note)


def _searched(folder: Path) -> Search:
    """The image files below a folder; raises UserError where there are none."""
    if not _is_folder(folder):
        raise UserError(f"expected a folder of images, found none at {folder}")
    search = Search(folder)
    search.run()
    if not search.found:
        found = _skipped(search.skipped) or "none"
        raise UserError(f"{folder}: expected image files ({', '.join(sorted(SUFFIXES))}), found {found}")
    return search


def archive_origin(kind: str, path: Path, rule: Rule, options: Options, splits: Splitting | None = None) -> Origin:
    """The pictures of a file of that kind, or of all below a folder."""
    chosen = KINDS[kind]
    asked = " ".join([kind, *(f"{name}={options[name]}" for name in chosen.options if name in options)])
    if splits is not None:
        asked += f" {rule} published"
    look = lambda: _listed_by_name(chosen.look(path, options), rule, splits or splits_of)  # noqa: E731
    return Origin(path, chosen.files(path), rule, asked, look)


def _in_tars(path: Path, options: Options) -> Found:
    contents = tars.Contents.of(path)
    if not contents.spans:
        found = _skipped(contents.skipped) or f"{len(contents.shards)} {tars.SUFFIX} files"
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{path}: expected image files ({kinds}) in {tars.SUFFIX} files, found {found}")
    return Found(Search(path, sorted(contents.spans), contents.skipped), contents.pictures)


def _in_parquets(path: Path, options: Options) -> Found:
    rows = parquets.Rows.of(path, options.get("column"))
    if not rows.rows:
        raise UserError(f"{path}: expected rows of images in {parquets.SUFFIX} files, found none")
    return Found(Search(path, sorted(rows.rows)), rows.pictures, as_found=True)


def _in_arrays(path: Path, options: Options) -> Found:
    rows = npys.Rows.of(path)
    return Found(Search(path, list(rows.rows)), rows.pictures)


def _in_environments(path: Path, options: Options) -> Found:
    raw = options.get("raw")
    contents = lmdbs.Contents.of(path, None if raw is None else _side("raw", raw))
    if not contents.keys:
        found = _skipped(contents.skipped) or "none"
        advice = "where they are the pixels of colour images, say ?raw=N for values of N x N x 3 bytes"
        raise UserError(f"{path}: expected values that are image files, found {found}; {advice}")
    return Found(Search(path, list(contents.keys), contents.skipped), contents.pictures)


KINDS: dict[str, Kind] = {
    "tar": Kind(lambda path: shards(path, tars.SUFFIX), _in_tars),
    "parquet": Kind(lambda path: shards(path, parquets.SUFFIX), _in_parquets, ("column",)),
    "npy": Kind(lambda path: shards(path, npys.SUFFIX), _in_arrays),
    "lmdb": Kind(lmdbs.environments, _in_environments, ("raw",)),
}


def _asked(request: Request, *more: str) -> tuple[Path, Rule, Options]:
    """The path, and the options behind it, of which there may be `more`."""
    path, _, query = request.argument.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return user_path(path), _rule(options, more), options


def read_origin(origin: Origin) -> Splits:
    """The splits of a source, decoded."""
    images = images_of(origin)
    parts = [Part(part) for part in images.pixels.split(images.counts)]
    return Splits(*parts, note=images.note, content_hash=images.content_hash)


def _listed_by_name(found: Found, asked: Rule, splits: Splitting) -> Listing:
    """What was found, in splits by name."""
    by_split, rule = splits(found.search)
    order = [name for split in SPLIT_NAMES for name in (sorted(by_split[split]) if found.as_found else by_split[split])]
    train, validation, test = (len(by_split[split]) for split in SPLIT_NAMES)
    resize = f"; {RESIZE_RULE.format(size=asked.size)}" if asked.size else ""
    skipped = f"skipped: {_skipped(found.search.skipped)}" if found.search.skipped else ""
    words = Words(f"{len(order)} files, {rule}{resize}", skipped)
    return Listing(found.pictures(order), (train, validation, test), words)


def _rule(options: dict[str, str], more: Sequence[str]) -> Rule:
    """The options of `size=N&background=black`; raises UserError for any other that is none of `more`."""
    for name in options:
        if name not in (known := ("size", "background", *more)):
            raise unknown("option of a folder or archive", name, known)
    size, background = options.get("size"), options.get("background", "white")
    if background not in BACKGROUNDS:
        raise unknown("background of a folder or archive", background, BACKGROUNDS)
    return Rule(None if size is None else _side("size", size), background)


def _side(name: str, text: str) -> int:
    """Pixels of a side."""
    if not (re.fullmatch("0*[1-9][0-9]{,4}", text) and int(text) <= LARGEST_SIZE):
        raise UserError(f"expected ?{name}=N with N of 1 to {LARGEST_SIZE}, got {name}={text[:SHOWN_DIGITS]}")
    return int(text)


def _is_folder(path: Path) -> bool:
    """Whether there is a folder; not where the path is too long, or leads through what may not be read."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _broken(path: Path) -> bool:
    """Whether the path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def _skipped(counts: Counter[str]) -> str:
    """What was skipped: "3 hidden, 2 .txt"."""
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _split_of(folders: Sequence[str]) -> str | None:
    """The split that the outermost of these folders names."""
    name = _split_name(folders)
    return None if name is None else SPLIT_FOLDERS[name]


def _split_name(folders: Sequence[str]) -> str | None:
    """The outermost of these folders that names a split, in lower case."""
    words = (word for name in folders for word in (re.split("[-_.]", name) if name.endswith(ARCHIVES) else [name]))
    return next((word.lower() for word in words if word.lower() in SPLIT_FOLDERS), None)


def by_name(search: Search) -> dict[str | None, list[str]]:
    """What was found, by the split that its folders name, None where they name none."""
    by_split: dict[str | None, list[str]] = {}
    for name in search.found:
        by_split.setdefault(_split_of(name.split("/")[:-1]), []).append(name)
    return by_split


def splits_of(search: Search) -> tuple[dict[str, list[str]], str]:
    """The files of each split, and by which rule.

    One folder named "train" beside others is a class, not a split.
    """
    where, by_split = str(search.folder), by_name(search)
    if not {"validation", "test"} & set(by_split):
        index = cut(search.found, ("validation", "test"), where)
        return _chosen(search.found, index), "split by hash of file name"
    _check_splits(search, by_split)
    missing = [split for split in ("validation", "test") if split not in by_split]
    train = by_split["train"]
    given = {split: by_split[split] for split in SPLIT_NAMES[1:] if split in by_split}
    rule = "splits as the folders say"
    if not missing:
        return {"train": train, **given}, rule
    rule = f"{rule}, {missing[0]} cut from train by hash of file name"
    return _chosen(train, cut(train, missing, where)) | given, rule


def _chosen(names: Sequence[str], index: dict[str, list[int]]) -> dict[str, list[str]]:
    """The names at the positions of each split."""
    return {split: [names[i] for i in positions] for split, positions in index.items()}


def _check_splits(search: Search, by_split: dict[str | None, list[str]]) -> None:
    """Raise UserError where folders name splits but not of every image, no train, one twice, or share files."""
    names = {name for path in search.found if (name := _split_name(path.split("/")[:-1]))}
    named = ", ".join(sorted(names))
    if "train" not in by_split:
        raise UserError(f"{search.folder}: expected 'train' beside the folders {named}; rename what is not a split")
    if None in by_split:
        outside = _listed(by_split[None])
        raise UserError(f"{search.folder}: expected all images below {named}, but {outside} are not; move them away")
    if len(names) > len(by_split):
        raise UserError(f"{search.folder}: expected one folder for each split, found {named}; rename or join them")
    for link, first in search.repeated:
        if len({_split_of(path.split("/")) for path in (link, first)} - {None}) > 1:
            raise UserError(f"{search.folder}: expected splits that share no file, but {link} is {first}; remove one")


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
