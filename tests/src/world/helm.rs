//! Purpose: Helm at an API, with the rights of an administrator and no files of whoever runs the test.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::kube::Kube;
use super::tool::root;

/// One Helm and the namespace that it works in.
#[derive(Debug)]
pub struct Helm<'a> {
    /// The program.
    pub program: PathBuf,
    /// The API.
    pub kube: &'a Kube,
    /// The namespace.
    pub namespace: &'a str,
}

impl Helm<'_> {
    /// Runs it in the workspace's folder.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        let config = self.kube.kubeconfig().unwrap_or_else(|error| panic!("{error}"));
        let home = config.with_file_name("helm");
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--namespace", self.namespace]).current_dir(root());
        command.arg("--kubeconfig").arg(config);
        for variable in ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, &home);
        }
        command.output().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }

    /// Runs it; all that it said.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {said}", self.program.display());
        said
    }
}
