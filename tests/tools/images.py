#!/usr/bin/env python3
"""Builds the container images with buildah, prints their sizes and tries them out.

usage: images.py [--arch amd64,arm64] [--skip-build]

--skip-build takes the released programs that are there (`make release`). The base is what Debian packages hold: only the
files that our binaries, nft and iptables need are taken, each package's licence with them. An image for another
architecture is built by cross compiling and looked at; this machine's is also run, in namespaces and a root file system
of its own, which takes root. The proxy's image may have 25 MiB, compressed. Images end as OCI archives under
target/images.
"""
import argparse, gzip, hashlib, io, json, os, re, shutil, stat, subprocess, sys, tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
WORK = os.path.join(TARGET, "images")
MIB = 1 << 20
LIMITS = {"proxy": 25 * MIB}
ARCHES = {
    # Debian's and OCI's word: Rust's target, the library folder.
    "amd64": ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu"),
    "arm64": ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu"),
}
MACHINES = {"amd64": "X86-64", "arm64": "AArch64"}
HOST = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
PACKAGES = [
    "libc6", "libgcc-s1", "gcc-12-base", "nftables", "libnftables1", "libnftnl11", "libmnl0", "libxtables12", "libjansson4", "libgmp10",
    "libedit2", "libtinfo6", "libbsd0", "libmd0", "iptables", "libip4tc2", "libip6tc2", "libnetfilter-conntrack3",
    "libnfnetlink0",
]
BINARIES = {"proxy": ["outrigger-proxy"], "control": ["outrigger-control", "outriggerctl"]}
OWNERS = {"proxy": ("outrigger", 1337), "control": ("outrigger", 65532)}
MULTI = ("xtables-nft-multi", "xtables-legacy-multi")


def run(*command, **options):
    """Runs a program; what it printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} ...: failed ({done.returncode})\n{done.stdout}")
    return done.stdout


def need(program, package):
    if not shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        sys.exit(f"{program} is not there: install {package}, as `make images` does when it runs as root")


def fetch(arch):
    """Debian's packages of this architecture, unpacked each by itself; by folder. The machine's own lists stay as they are."""
    apt = os.path.join(WORK, "apt", arch)
    unpacked = os.path.join(apt, "unpacked")
    if os.path.isdir(unpacked):
        return unpacked
    for folder in ("lists/partial", "cache/archives/partial", "parts", "debs"):
        os.makedirs(os.path.join(apt, folder), exist_ok=True)
    sources = "/etc/apt/sources.list.d/debian.sources"
    listed = os.path.exists(sources)
    if listed:
        shutil.copy(sources, os.path.join(apt, "parts"))
    options = [
        f"APT::Architecture={arch}", f"APT::Architectures={arch}", "APT::Sandbox::User=root", "Acquire::Retries=3",
        f"Dir::State::lists={apt}/lists", f"Dir::Cache={apt}/cache", "Dir::State::status=/dev/null",
        f"Dir::Etc::sourceparts={apt}/parts", f"Dir::Etc::sourcelist={'/dev/null' if listed else '/etc/apt/sources.list'}",
    ]
    flags = [word for option in options for word in ("-o", option)]
    run("apt-get", "-qq", *flags, "update")
    run("apt-get", "-qq", *flags, "download", *PACKAGES, cwd=os.path.join(apt, "debs"))
    shutil.rmtree(unpacked + ".part", ignore_errors=True)
    os.makedirs(unpacked + ".part")
    for deb in sorted(os.listdir(os.path.join(apt, "debs"))):
        run("dpkg-deb", "-x", os.path.join(apt, "debs", deb), os.path.join(unpacked + ".part", deb.split("_")[0]))
    os.replace(unpacked + ".part", unpacked)
    return unpacked


class Tree:
    """The files of an image."""

    def __init__(self, folder, unpacked, arch):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        self.folder, self.unpacked, self.used = folder, unpacked, {"libc6"}
        self.libraries, self.machine = ARCHES[arch][1], MACHINES[arch]

    def place(self, path):
        path = os.path.join(self.folder, path.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def write(self, path, text):
        with open(self.place(path), "w") as file:
            file.write(text)

    def add(self, path, source):
        """One program or library, stripped, and what it needs."""
        kept = self.place(path)
        if os.path.lexists(kept):
            return
        dynamic = run("readelf", "-hdl", source)
        if not re.search(rf"Machine:.*{self.machine}", dynamic):
            sys.exit(f"{source} is not for {self.machine}: build it for that, or leave --skip-build out")
        shutil.copyfile(source, kept)
        os.chmod(kept, 0o755)
        strip = shutil.which(f"{self.libraries}-strip") or "strip"
        run(strip, "--strip-unneeded", kept, stderr=subprocess.DEVNULL)
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic):
            self.add_package_file([f"lib/{self.libraries}/{name}", f"usr/lib/{self.libraries}/{name}"])
        for interpreter in re.findall(r"program interpreter: (.+)\]", dynamic):
            self.add_package_file([interpreter.lstrip("/"), f"lib/{self.libraries}/{os.path.basename(interpreter)}"],
                                  interpreter)

    def add_package_file(self, paths, kept=None):
        """The first of the paths that a package holds, links followed inside of it."""
        for package in sorted(os.listdir(self.unpacked)):
            for path in paths:
                source = os.path.join(self.unpacked, package, path)
                while os.path.islink(source):
                    to = os.readlink(source)
                    base = os.path.join(self.unpacked, package) if to.startswith("/") else os.path.dirname(source)
                    source = os.path.normpath(os.path.join(base, to.lstrip("/")))
                if os.path.isfile(source):
                    self.used.add(package)
                    return self.add(kept or path, source)
        sys.exit(f"{paths[0]} is in none of the packages: add the one that holds it to PACKAGES")

    def licences(self):
        for package in self.used:
            # Some packages' folder is a link to that of the one they are built with.
            doc = os.path.join(self.unpacked, package, "usr/share/doc", package)
            named = os.readlink(doc) if os.path.islink(doc) else package
            shutil.copy(os.path.join(self.unpacked, named, "usr/share/doc", named, "copyright"),
                        self.place(f"usr/share/doc/{package}/copyright"))
        shutil.copy(os.path.join(ROOT, "LICENSE"), self.place("usr/share/doc/outrigger/LICENSE"))


def fill(image, arch):
    """The folder that becomes the image."""
    target, libraries = ARCHES[arch]
    tree = Tree(os.path.join(WORK, "root", arch, image), fetch(arch), arch)
    for binary in BINARIES[image]:
        source = os.path.join(TARGET, "released", target, binary)
        if not os.path.exists(source):
            sys.exit(f"{source} is not there: leave --skip-build out")
        tree.add(f"usr/local/bin/{binary}", source)
    # Names are resolved by what libc loads by itself.
    for name in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"):
        tree.add_package_file([f"lib/{libraries}/{name}"])
    if image == "proxy":
        tree.add_package_file(["usr/sbin/nft"])
        for multi in MULTI:
            tree.add_package_file([f"usr/sbin/{multi}"])
        for name in os.listdir(os.path.join(tree.unpacked, "iptables/usr/lib", libraries, "xtables")):
            if name.startswith(("libxt_", "libipt_", "libip6t_")):
                tree.add_package_file([f"usr/lib/{libraries}/xtables/{name}"])
        for tables in ("iptables", "ip6tables"):
            for verb in ("", "-save", "-restore"):
                for make, multi in (("", MULTI[0]), ("-nft", MULTI[0]), ("-legacy", MULTI[1])):
                    os.symlink(multi, tree.place(f"usr/sbin/{tables}{make}{verb}"))
    user, uid = OWNERS[image]
    tree.write("etc/passwd", f"root:x:0:0:root:/:/nologin\n{user}:x:{uid}:{uid}::/:/nologin\n")
    tree.write("etc/group", f"root:x:0:\n{user}:x:{uid}:\n")
    tree.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for empty in ("proc", "sys", "dev", "run"):
        os.makedirs(os.path.join(tree.folder, empty))
    os.makedirs(os.path.join(tree.folder, "tmp"))
    os.chmod(os.path.join(tree.folder, "tmp"), 0o1777)
    tree.licences()
    return tree.folder


def buildah(*arguments):
    storage = [f"--root={WORK}/storage/root", f"--runroot={WORK}/storage/run", "--storage-driver=vfs"]
    # Neither pulling nor pushing leaves this machine; without a policy file of its own it would ask for one.
    environment = dict(os.environ, BUILDAH_ISOLATION="chroot", STORAGE_DRIVER="vfs")
    return run("buildah", *storage, *arguments, env=environment)


def make(image, arch, version):
    """Builds one image; its OCI layout."""
    context = fill(image, arch)
    tag = f"outrigger-{image}:{version}-{arch}"
    buildah("bud", "--quiet", "--isolation=chroot", "--timestamp=0", f"--platform=linux/{arch}", "--layers=false",
            "--label=org.opencontainers.image.licenses=Apache-2.0", f"--label=org.opencontainers.image.version={version}",
            "-f", os.path.join(ROOT, "charts/images", f"{image}.Dockerfile"), "-t", tag, context)
    layout = os.path.join(WORK, f"outrigger-{image}-{version}-{arch}")
    shutil.rmtree(layout, ignore_errors=True)
    policy = os.path.join(WORK, "policy.json")
    with open(policy, "w") as file:
        json.dump({"default": [{"type": "insecureAcceptAnything"}]}, file)
    buildah("push", "--quiet", "--signature-policy", policy, tag, f"oci:{layout}:{version}")
    with tarfile.open(layout + ".tar", "w") as archive:
        archive.add(layout, ".")
    return layout


class Layout:
    """An image as it would be pulled."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "index.json")) as file:
            manifest = self.blob(json.load(file)["manifests"][0]["digest"])
        self.manifest = json.loads(manifest)
        self.config = json.loads(self.blob(self.manifest["config"]["digest"]))
        self.layers = [gzip.decompress(self.blob(layer["digest"])) for layer in self.manifest["layers"]]

    def blob(self, digest):
        with open(os.path.join(self.folder, "blobs", *digest.split(":")), "rb") as file:
            bytes = file.read()
        assert digest == "sha256:" + hashlib.sha256(bytes).hexdigest(), digest
        return bytes

    def compressed(self):
        return sum(layer["size"] for layer in self.manifest["layers"]) + self.manifest["config"]["size"]

    def unpack(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        for layer in self.layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                archive.extractall(folder)
        return folder


def look(image, arch, layout):
    """What can be told of an image without running it."""
    wrong = []
    user = layout.config["config"].get("User", "")
    if user.split(":")[0] in ("", "0", "root") or not user.split(":")[0].isdigit():
        wrong.append(f"its user is `{user}`: a number that is not root's is wanted")
    if layout.config["architecture"] != arch:
        wrong.append(f"its architecture says {layout.config['architecture']}")
    for layer in layout.layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for member in archive:
                if member.mode & (stat.S_ISUID | stat.S_ISGID):
                    wrong.append(f"{member.name} is set-uid or set-gid")
                if os.path.basename(member.name) in ("sh", "bash", "dash", "busybox"):
                    wrong.append(f"{member.name} is a shell")
    limit = LIMITS.get(image)
    if limit and layout.compressed() > limit:
        wrong.append(f"it has {layout.compressed() / MIB:.1f} MiB compressed; {limit / MIB:.0f} is the limit")
    return [f"outrigger-{image} {arch}: {what}" for what in wrong]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="amd64,arm64", help="amd64, arm64 or both (the default)")
    parser.add_argument("--skip-build", action="store_true", help="take the released programs that are there")
    options = parser.parse_args()
    arches = options.arch.split(",")
    if not set(arches) <= set(ARCHES):
        sys.exit(f"--arch {options.arch}: not a list of {', '.join(ARCHES)}")
    for program, package in (("buildah", "buildah"), ("dpkg-deb", "dpkg"), ("readelf", "binutils")):
        need(program, package)
    os.makedirs(WORK, exist_ok=True)
    with open(os.path.join(ROOT, "Cargo.toml")) as file:
        version = re.search(r'^version = "(.+)"', file.read(), re.MULTILINE).group(1)
    rows, wrong = [], []
    if not options.skip_build:
        run(sys.executable, os.path.join(ROOT, "tests/tools/release.py"), "--arch", options.arch)
    for arch in arches:
        for image in BINARIES:
            layout = Layout(make(image, arch, version))
            wrong += look(image, arch, layout)
            unpacked = layout.unpack(os.path.join(WORK, "unpacked", arch, image))
            rows.append((f"outrigger-{image}:{version}", arch, layout.compressed(), sum(map(len, layout.layers))))
            if arch == HOST:
                check = os.path.join(ROOT, "tests/tools/image_runs.sh")
                print(run("sh", check, image, unpacked), end="")
    print(f"\n{'image':<28} {'arch':<6} {'compressed MiB':>15} {'unpacked MiB':>13}")
    for name, arch, compressed, whole in rows:
        print(f"{name:<28} {arch:<6} {compressed / MIB:>15.1f} {whole / MIB:>13.1f}")
    sys.exit("\n".join(wrong) if wrong else 0)


main()
