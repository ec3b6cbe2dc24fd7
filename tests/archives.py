"""What tests/package.sh asks of an sdist and a wheel: that they hold the checkout, and wheels of all that they require.

python tests/archives.py DIST     the folder of both; exit status 1 with a line for each file that is wrong
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_bytes
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("PKG-INFO", "setup.cfg", "*.egg-info/*")  # files of an sdist
SYSTEMS = {  # that are not at hand: by pip's name, what markers say there
    "macosx_14_0_arm64": {"platform_system": "Darwin", "platform_machine": "arm64", "sys_platform": "darwin"},
    "win_amd64": {"platform_system": "Windows", "platform_machine": "AMD64", "sys_platform": "win32"},
}


def checkout(root: Path) -> set[str]:
    """Every file below a folder but links, and what .gitignore names."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [".git", *(line.rstrip("/") for line in lines if line and not line.startswith("#"))]
    found = set()
    for folder, folders, names in os.walk(root):
        for kind in (folders, names):
            kind[:] = [name for name in kind if not any(fnmatch(name, pattern) for pattern in ignored)]
        found |= {path.relative_to(root).as_posix() for name in names if not (path := Path(folder, name)).is_symlink()}
    return found


def differences(files: set[str], sdist: set[str], wheel: set[str]) -> list[str]:
    """What an sdist and a wheel lack of a checkout's files, and what else they hold, a line each."""
    files, sdist = ({n for n in names if not any(fnmatch(n, g) for g in GENERATED)} for names in (files, sdist))
    wheel = {name for name in wheel if ".dist-info/" not in name}
    kernels = {f"fastaae/{name}" for name in files if name.startswith("kernels/")}
    package = {name for name in files if name.startswith("fastaae/")} | kernels
    found = []
    for what, wanted, held in (("sdist", files, sdist), ("wheel", package, wheel)):
        found += [f"{what}: {name} is missing" for name in sorted(wanted - held)]
        found += [f"{what}: {name} does not belong there" for name in sorted(held - wanted)]
    return found


def resolved(requirements: list[str], system: str) -> list[str]:
    """The wheels that requirements, and those of each in turn, bring on a system. Raises CalledProcessError: none."""
    from packaging.requirements import Requirement  # of the environment that has `build`

    found: dict[str, str] = {}
    while requirements:
        known = {**SYSTEMS[system], "python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
        some = [r for r in map(Requirement, requirements) if not r.marker or r.marker.evaluate(known)]
        wanted = sorted({f"{r.name}{r.specifier}" for r in some if r.name.lower().replace("_", "-") not in found})
        if not wanted:
            break
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--quiet"]
            flags += ["--python-version", "3.12", "--platform", system, "--target", folder]
            flags += ["--report", f"{folder}/report.json", *wanted]
            subprocess.run([sys.executable, "-m", "pip", "install", *flags], check=True)
            items = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))["install"]
        names = {item["metadata"]["name"].lower().replace("_", "-"): item["download_info"]["url"] for item in items}
        found |= {name: url.rpartition("/")[2] for name, url in names.items()}
        requirements = [r for item in items for r in item["metadata"].get("requires_dist", [])]
    return sorted(found.values())


def main() -> int:
    (sdist,), (wheel,) = (sorted(Path(sys.argv[1]).glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    with tarfile.open(sdist) as packed, zipfile.ZipFile(wheel) as archive:
        names = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
        wrong = differences(checkout(ROOT), names, {*archive.namelist()})
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    for system in SYSTEMS:
        print(f"{system}: {' '.join(resolved(requirements, system))}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
