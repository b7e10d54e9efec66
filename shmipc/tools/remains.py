"""``shmipc gc``: remove what dead systems have left in /dev/shm, as every start of a system does."""

from typing import Any

from shmipc.memory import segments
from shmipc.tools.looks import file_bytes
from shmipc.tools.ps import size

LOCK_SECONDS = 5.0


def run(dry_run: bool) -> tuple[dict[str, Any], bool]:
    """What is to be printed, and whether there was anything; raises Timeout when somebody stands on the lock."""
    found: list[dict[str, Any]] = []

    def tell(name: str, paths: segments.Paths) -> bool:
        files = [str(path) for path in (paths.segment, paths.life) if path.exists()]
        found.append({"name": name, "bytes": file_bytes(paths), "files": files})
        return not dry_run

    removed = segments.sweep(timeout=LOCK_SECONDS, found=tell)
    for entry in found:
        entry["removed"] = entry["name"] in removed
    return {"dry_run": dry_run, "systems": found}, bool(found)


def as_text(report: dict[str, Any]) -> str:
    lines = []
    for entry in report["systems"]:
        what = "removed" if entry["removed"] else "would be removed" if report["dry_run"] else "could not be removed"
        lines.append(f"{what}: system {entry['name']}, {size(entry['bytes'])}: {' '.join(entry['files'])}")
    return "\n".join(lines) if lines else "nothing is left of dead systems"
