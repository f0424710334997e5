//! Compiles the `.proto` files that ship inside the `envoy-types` crate, and our own, into one descriptor set
//! (`descriptors.bin`, for the tests) and tables to embed, and generates the code of `outrigger.policy.v1`.
//! Neither protoc nor the network is used.

#[path = "build/tables.rs"]
mod tables;

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use serde_json::Value;

/// Import roots inside the crate's `proto` folder.
const IMPORT_ROOTS: [&str; 8] = [
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "opentelemetry-proto",
    "client_model",
    "cel-spec/proto",
    "ratelimit/api",
];

/// Our own files, below `proto`.
const OWN_FILES: [&str; 1] = ["outrigger/policy/v1/policy.proto"];

/// Files that `envoy-types` does not ship, below `proto` or inside protox: read by reflection, so no code is
/// generated.
const EXTRA_FILES: [&str; 3] =
    ["google/protobuf/field_mask.proto", "udpa/type/v1/typed_struct.proto", "xds/type/v3/typed_struct.proto"];

/// Files with a relative type name that protox cannot resolve: it looks at every package it has seen, where
/// protoc looks at direct imports only, and so takes `common.x` for `clusters.common.x`. File, as written, absolute.
const ABSOLUTE_NAMES: [(&str, &str, &str); 1] = [(
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto",
    " common.dynamic_forward_proxy.v3.",
    " .envoy.extensions.common.dynamic_forward_proxy.v3.",
)];

/// Environment variable that names the folder of `envoy-types`, for a build without cargo's metadata.
const OVERRIDE: &str = "OUTRIGGER_ENVOY_TYPES_DIR";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let envoy_protos = envoy_types_dir()?.join("proto");

    let envoy_roots = IMPORT_ROOTS.map(|root| envoy_protos.join(root));
    let edited = write_edited(&envoy_roots, &out_dir.join("edited"))?;
    let mut includes = vec![PathBuf::from("proto"), edited];
    includes.extend_from_slice(&envoy_roots);
    let mut compiler = new_compiler(&includes)?;
    compiler.open_files(OWN_FILES)?;
    // Comments become the documentation of the generated code; the embedded set needs none.
    let own = compiler.include_source_info(true).file_descriptor_set();
    compiler.include_source_info(false);
    compiler.open_files(EXTRA_FILES)?;

    let mut sets = Vec::new();
    for root in envoy_roots {
        for file in proto_files(&root)? {
            // A package seen in an earlier file can hide the one that a relative name means (see
            // ABSOLUTE_NAMES); a compiler of its own, which has seen less, then resolves it.
            if compiler.open_file(&file).is_err() {
                let mut alone = new_compiler(&includes)?;
                alone.open_file(&file)?;
                sets.push(alone.encode_file_descriptor_set());
            }
        }
    }
    sets.insert(0, compiler.encode_file_descriptor_set());
    let merged = merge(&sets)?;
    let tables = tables::build(&FileDescriptorSet::decode(merged.as_slice())?)?;
    fs::write(out_dir.join("descriptors.bin"), merged)?;
    fs::write(out_dir.join("tables.bin"), tables.words)?;
    fs::write(out_dir.join("names.txt"), tables.names)?;
    let mut code = prost_build::Config::new();
    for package in ["envoy", "google.protobuf", "udpa", "validate", "xds"] {
        let module = package.replace('.', "::");
        code.extern_path(format!(".{package}"), format!("::envoy_types::pb::{module}"));
    }
    code.enable_type_names()
        .compile_well_known_types()
        .type_name_domain(["."], "type.googleapis.com")
        .out_dir(&out_dir)
        .compile_fds(own)?;
    Ok(())
}

fn new_compiler(includes: &[PathBuf]) -> Result<protox::Compiler, protox::Error> {
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(true);
    Ok(compiler)
}

/// A `FileDescriptorSet` whose files stay encoded: decoding them would lose their extension options.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

/// One set with each file once, dependencies before dependants.
fn merge(sets: &[Vec<u8>]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut merged = EncodedSet::default();
    let mut seen = BTreeSet::new();
    for set in sets {
        for file in EncodedSet::decode(set.as_slice())?.file {
            if seen.insert(FileDescriptorProto::decode(file.as_slice())?.name().to_owned()) {
                merged.file.push(file);
            }
        }
    }
    Ok(merged.encode_to_vec())
}

/// Writes the files of [`ABSOLUTE_NAMES`] below `folder`, which shadows the import roots.
fn write_edited(roots: &[PathBuf], folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    for (file, written, absolute) in ABSOLUTE_NAMES {
        let source = roots
            .iter()
            .map(|root| root.join(file))
            .find(|path| path.exists())
            .ok_or_else(|| format!("envoy-types ships no {file}"))?;
        let target = folder.join(file);
        fs::create_dir_all(target.parent().ok_or("an edited file has no folder")?)?;
        fs::write(target, fs::read_to_string(source)?.replace(written, absolute))?;
    }
    Ok(folder.to_path_buf())
}

/// All `.proto` files below `root`, as paths relative to it, sorted.
fn proto_files(root: &Path) -> Result<BTreeSet<PathBuf>, Box<dyn Error>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                found.insert(path.strip_prefix(root)?.to_path_buf());
            }
        }
    }
    Ok(found)
}

/// The folder of the `envoy-types` crate that this build links.
fn envoy_types_dir() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(dir) = env::var_os(OVERRIDE) {
        return Ok(PathBuf::from(dir));
    }
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let lock = manifest_dir.ancestors().map(|dir| dir.join("Cargo.lock")).find(|lock| lock.exists());
    if let Some(lock) = &lock {
        println!("cargo::rerun-if-changed={}", lock.display());
    }
    named_by_metadata(&manifest_dir).or_else(|reason| {
        lock.and_then(|lock| downloaded(&lock)).ok_or_else(|| {
            format!("{reason}\nRun `cargo fetch` first, or set {OVERRIDE} to the folder of the envoy-types sources.")
                .into()
        })
    })
}

/// As cargo names it: follows vendoring, patches and other registries.
fn named_by_metadata(manifest_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // Cargo has fetched what this build needs, so nothing may be fetched here. The platform filter
    // keeps crates of other systems, which were never fetched, out of the answer.
    let output = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?)
        .args(["metadata", "--format-version=1", "--frozen"])
        .arg(format!("--filter-platform={}", env::var("TARGET")?))
        .arg("--manifest-path")
        .arg(manifest_dir.join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`cargo metadata` could not name the envoy-types crate: {said}").into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("`cargo metadata` lists no package envoy-types")?;
    Ok(Path::new(manifest).parent().ok_or("the manifest of envoy-types has no folder")?.to_path_buf())
}

/// Where cargo unpacks what it downloads. `cargo metadata` asks for the whole workspace, test dependencies too; on a
/// machine that has only built, these were never fetched and it fails.
fn downloaded(lock: &Path) -> Option<PathBuf> {
    let lock = fs::read_to_string(lock).ok()?;
    let (_, entry) = lock.split_once("name = \"envoy-types\"\nversion = \"")?;
    let version = entry.split('"').next()?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))?;
    fs::read_dir(home.join("registry/src"))
        .ok()?
        .filter_map(Result::ok)
        .map(|registry| registry.path().join(format!("envoy-types-{version}")))
        .find(|dir| dir.join("proto").is_dir())
}
