//! A pinned balancer's place: a lab, its file and directory, and what is left of it.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::examples::configuration;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::program::katran;

/// A lab, a file for its balancer, and a directory for it to be pinned in.
pub(crate) struct Place {
    pub(crate) lab: Lab,
    pub(crate) file: Scratch,
    pub(crate) directory: PathBuf,
    /// The pinned root program that it is an entry of, unless attached directly.
    pub(crate) shared: Option<PathBuf>,
}

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        require_root();
        let directory = private_bpf_fs().unwrap().join("katran");
        let lab = Lab::new(LabConfig::default()).unwrap();
        let file = Scratch::new(name);
        file.write(&configuration(&lab, 0));
        Self {
            lab,
            file,
            directory,
            shared: None,
        }
    }

    /// One with a root program on the interface.
    pub(crate) fn shared(name: &str) -> Self {
        let mut place = Self::new(name);
        let path = place.directory.with_file_name("shared");
        let mut root = example("root");
        root.args(["attach", "--interface", "eth0", "--path"])
            .arg(&path);
        let output = place.host().output(root).unwrap();
        assert!(output.status.success(), "{output:?}");
        place.shared = Some(path);
        place
    }

    pub(crate) fn host(&self) -> &Host {
        &self.lab.balancers[0].host
    }

    /// A balancer that prints its counters.
    pub(crate) fn balancer(&self, options: &[&str]) -> Command {
        self.command("katran", &[&["--counters"], options].concat())
    }

    /// The same, with this build of the program.
    pub(crate) fn command(&self, build: &str, options: &[&str]) -> Command {
        let mut command = example(build);
        command
            .args(["run", "--no-socket", "--config"])
            .arg(&self.file.0);
        match &self.shared {
            Some(path) => command.arg("--shared").arg(path),
            None => command.args(["--interface", "eth0"]),
        };
        command.arg("--pin").arg(&self.directory).args(options);
        command
    }

    /// One that also takes commands.
    pub(crate) fn listening(&self, options: &[&str], socket: &Scratch) -> Command {
        let mut command = example("katran");
        command
            .args(["run", "--interface", "eth0", "--config"])
            .arg(&self.file.0);
        command.arg("--socket").arg(&socket.0);
        command.arg("--pin").arg(&self.directory).args(options);
        command
    }

    /// Starts one and waits until it balances.
    pub(crate) fn start(&self, options: &[&str]) -> Running {
        let mut balancer = Running::start(self.host(), self.balancer(options));
        balancer.says("balancing on eth0 in native mode");
        balancer
    }

    pub(crate) fn removal(&self) -> Command {
        let mut command = katran("remove");
        command.arg("--pin").arg(&self.directory);
        command
    }

    /// Removes it, and checks that nothing is left.
    pub(crate) fn remove(&self) {
        let output = self.host().output(self.removal()).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(self.is_clean());
    }

    pub(crate) fn is_clean(&self) -> bool {
        let pins = pins(self.directory.parent().unwrap());
        if self.shared.is_some() {
            // The array, the program, its counters and the attachment.
            return pins.len() == 4 && pins[3].starts_with("shared_xdp_");
        }
        let has_xdp = self.host().ip("link show eth0").unwrap().contains("xdp");
        !has_xdp && pins.is_empty()
    }
}

/// The entries of a directory; the file system's own entries have dots.
pub(crate) fn pins(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.contains('.')).collect();
    names.sort();
    names
}

/// Checks that, while that process lives, no other can adopt its pins.
pub(crate) fn is_only_of(process: u32, host: &Host, others: impl IntoIterator<Item = Command>) {
    for command in others {
        let refused = host.output(command).unwrap();
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success());
        assert!(
            text.contains(&format!("belongs to process {process}")),
            "{text}"
        );
    }
}

/// Checks that new connections reach the first backend by both VIPs.
pub(crate) fn takes_connections(lab: &Lab) {
    for vip in [lab.vip4(), lab.vip6()] {
        let mut new = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap();
        assert_eq!(new.ask("who").unwrap(), "backend0");
    }
}
