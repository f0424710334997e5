#!/usr/bin/env python3
"""Builds the programs that are released, the proxy by a profile of what it does under load.

usage: release.py [--arch amd64,arm64] [--plain] [--proxy-only]

A proxy that counts what it runs is built and put under the loads of the benchmark, on both drivers; what it counted
decides in the second build what is inlined, what lies close together and what is kept out of the way. That takes nginx,
h2load and nghttpd, and llvm-profdata (rustup's component llvm-tools, added when it is missing). A profile is kept for as
long as the code and the loads stay the same. --plain builds the proxy without one. The programs' paths are printed: each
target has a folder under target/released.
"""
import argparse, glob, hashlib, os, shutil, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
PROFILE = os.path.join(TARGET, "profile")
sys.path.insert(0, os.path.join(ROOT, "tests/bench"))
import bench, peers
ARCHES = {
    # Debian's and OCI's word: Rust's target, the linker where this machine's will not do.
    "amd64": ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu-gcc"),
    "arm64": ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc"),
}
HOST = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
# Programs that the loads take.
LOADS = ("nginx", "h2load", "nghttpd")
SCENES = bench.SCENES + bench.MORE_SCENES
# Each driver is started twice: for connections at rest, and for the loads.
RUNS = 4


def say(line):
    """Progress, apart from the result."""
    print(f"release: {line}", file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a program to its good end."""
    done = subprocess.run(command, check=False, cwd=ROOT, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} ...: failed ({done.returncode})")
    return done.stdout


def profdata():
    """The llvm-profdata that belongs to the compiler."""
    libraries = run("rustc", "--print", "target-libdir", stdout=subprocess.PIPE, text=True).strip()
    tool = os.path.join(os.path.dirname(libraries), "bin", "llvm-profdata")
    if not os.path.exists(tool) and shutil.which("rustup"):
        say("adding rustup's component llvm-tools")
        run("rustup", "component", "add", "llvm-tools")
    if not os.path.exists(tool):
        sys.exit(f"{tool} is not there: run `rustup component add llvm-tools`, or build with --plain")
    return tool


def cargo(arch, flags, *packages):
    """Release binaries of some packages; the folder they are in."""
    target, linker = ARCHES[arch]
    environment = dict(os.environ)
    if arch != HOST:
        if not peers.find(linker):
            sys.exit(f"{linker} is not there: install gcc-{linker.removesuffix('-gcc')}")
        name = target.replace("-", "_")
        environment[f"CARGO_TARGET_{name.upper()}_LINKER"] = linker
        environment[f"CC_{name}"] = linker
        run("rustup", "target", "add", target, stdout=sys.stderr)
    # Not RUSTFLAGS, which are split at spaces: a path may have one.
    environment["CARGO_ENCODED_RUSTFLAGS"] = "\x1f".join([*environment.pop("RUSTFLAGS", "").split(), *flags])
    named = [word for package in packages for word in ("-p", package)]
    run("cargo", "build", "--release", "--locked", "--target", target, *named, "--bins", env=environment)
    return os.path.join(TARGET, target, "release")


def trained():
    """The profile of the code as it stands; made when there is none."""
    missing = [f"{program} ({peers.PACKAGES[program]})" for program in LOADS if not peers.find(program)]
    if missing:
        sys.exit(f"not there: {', '.join(missing)}. Install them, as `make release` does as root, or build with --plain")
    tool = profdata()
    os.makedirs(PROFILE, exist_ok=True)
    say("building the proxy that counts what it runs")
    counting = os.path.join(PROFILE, "outrigger-proxy")
    shutil.copy2(os.path.join(cargo(HOST, ["-Cprofile-generate"], "outrigger-proxy"), "outrigger-proxy"), counting)
    digest = hashlib.sha256(repr(SCENES).encode())
    for path in (counting, *sorted(glob.glob(os.path.join(ROOT, "tests/bench/*.*")))):
        with open(path, "rb") as file:
            digest.update(file.read())
    # Named after the code and its loads: cargo does not look into the file, but it does know its own flags.
    profile = os.path.join(PROFILE, f"{digest.hexdigest()[:12]}.profdata")
    if os.path.exists(profile):
        say("this code has a profile of these loads already")
        return profile
    say("putting it under load")
    with tempfile.TemporaryDirectory(dir=PROFILE) as work:
        environment = dict(os.environ, LLVM_PROFILE_FILE=os.path.join(work, "%p.profraw"))
        scenes = [f"--scene={scene}" for scene in SCENES]
        run(sys.executable, "tests/bench/bench.py", "--quick", "--repeat=1", "--only=outrigger", f"--proxy={counting}",
            f"--out={work}", *scenes, env=environment, stdout=subprocess.DEVNULL)
        counted = glob.glob(os.path.join(work, "*.profraw"))
        if len(counted) < RUNS:
            sys.exit(f"only {len(counted)} of {RUNS} runs ended with counts: see above what failed")
        run(tool, "merge", f"--output={profile}.part", *counted)
    os.replace(f"{profile}.part", profile)
    return profile


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=HOST, help="amd64, arm64 or both, comma-separated (this machine's)")
    parser.add_argument("--plain", action="store_true", help="without a profile: one build, and no load")
    parser.add_argument("--proxy-only", action="store_true", help="leave the control plane out")
    options = parser.parse_args()
    arches = (options.arch or "").split(",")
    if not set(arches) <= set(ARCHES):
        sys.exit(f"--arch {options.arch}: not a list of {', '.join(ARCHES)}")
    flags = [] if options.plain else [f"-Cprofile-use={trained()}"]
    for arch in arches:
        folder = os.path.join(TARGET, "released", ARCHES[arch][0])
        os.makedirs(folder, exist_ok=True)
        # The control plane by itself: in the proxy's profile its parsers would seem to be hardly used.
        built = [("outrigger-proxy", flags, ["outrigger-proxy"])]
        if not options.proxy_only:
            built.append(("outrigger-control", [], ["outrigger-control", "outriggerctl"]))
        for package, flags_of, programs in built:
            say(f"building {package} for {arch}")
            source = cargo(arch, flags_of, package)
            for program in programs:
                shutil.copy2(os.path.join(source, program), os.path.join(folder, f".{program}"))
                os.replace(os.path.join(folder, f".{program}"), os.path.join(folder, program))
                print(os.path.join(folder, program))


main()
