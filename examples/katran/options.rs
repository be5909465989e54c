//! What to balance, and where: the options of `run`, the configuration file, and attaching.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use katran::Katran;
use katran::Start;
use katran::State;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntry;
use katran::diagnosis::Diagnosis;
use katran::health::Document;
use katran::state::Changes;

use crate::common::keeper;
use crate::common::pin::Pin;
use crate::common::say;

/// For how long an owner is waited for that is asked to let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to balance, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The configuration: TOML with [balancer] and [[vip]]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Where packets come in and leave; may be given several times. With --shared it is attached to
    /// none: they are those of the root program, to look at for a diagnosis
    #[arg(long, value_name = "NAME", required_unless_present = "shared")]
    pub(crate) interface: Vec<String>,
    /// Share the interface: be an entry of the root program that is pinned here
    #[arg(long, value_name = "PATH")]
    shared: Option<PathBuf>,
    /// The entry, from 0
    #[arg(long, value_name = "N", default_value_t = 2, requires = "shared")]
    position: u32,
    /// auto, native (in the driver) or generic (in the network stack)
    #[arg(long, default_value_t = XdpMode::Auto)]
    mode: XdpMode,
    #[command(flatten)]
    pub(crate) keep: keeper::Keep,
    #[command(flatten)]
    pin: Pin,
    /// With --pin: have the program let go that owns the balancer, which then ends, and go on with it
    #[arg(long, requires = "pin")]
    pub(crate) take_over: bool,
}

impl Options {
    /// What the file says.
    pub(crate) fn document(&self) -> Result<Document> {
        read(&self.config)
    }

    /// A balancer with the settings of a state, or that which is pinned.
    pub(crate) fn load_or_go_on(&self, state: &State) -> Result<(Katran, Option<Start>)> {
        Ok(match self.pin.directory() {
            None => (state.builder()?.load()?, None),
            Some(directory) => {
                let mut builder = state.builder()?.pin(directory);
                if self.take_over {
                    builder = builder.take_over(PATIENCE);
                }
                let (katran, start) = builder.adopt_or_load()?;
                self.pin.report("balancer", &start);
                (katran, Some(start))
            }
        })
    }

    /// Attaches it to the interfaces, or puts it into its entry.
    pub(crate) fn attach(&self, katran: &mut Katran) -> Result<()> {
        // What the process before has attached, and what has lost its interface since.
        katran.reattach()?;
        let there = katran.interfaces();
        for interface in self.own_interfaces() {
            let held = there
                .iter()
                .find(|of| of.interface == *interface && of.state == AttachmentState::Attached);
            let attachment = match held {
                Some(held) => held.clone(),
                None => katran.attach(interface, self.mode)?,
            };
            say(format!(
                "balancing on {interface} in {} mode",
                attachment.mode
            ));
        }
        if let Some(path) = &self.shared {
            let entries = katran.shared_entries();
            let is_held =
                |of: &SharedEntry| of.path == *path && of.state == AttachmentState::Attached;
            if !entries.iter().any(is_held) {
                katran.attach_shared(path, self.position)?;
            }
            say(format!(
                "balancing as entry {} of {}",
                self.position,
                path.display()
            ));
        }
        Ok(())
    }

    /// Those that it is attached to itself.
    fn own_interfaces(&self) -> &[String] {
        match self.shared {
            None => &self.interface,
            Some(_) => &[],
        }
    }

    /// Dropping the balancer would detach it, too; here it is reported. One that is pinned stays.
    pub(crate) fn stop(&self, katran: &mut Katran) {
        if self.pin.leaves("balancing") {
            return;
        }
        for interface in self.own_interfaces() {
            match katran.detach(interface) {
                Ok(()) => say(format!("detached from {interface}")),
                Err(error) => eprintln!("{error}"),
            }
        }
        if let Some(path) = &self.shared {
            match katran.detach_shared(path) {
                Ok(()) => say(format!("left {}", path.display())),
                Err(error) => eprintln!("{error}"),
            }
        }
    }
}

/// What keeps a balancer from forwarding on each of these interfaces.
pub(crate) fn diagnose(katran: &Katran, interfaces: &[String]) -> Result<Vec<(String, Diagnosis)>> {
    anyhow::ensure!(
        !interfaces.is_empty(),
        "a diagnosis with --shared takes --interface, too: those that the root program is on"
    );
    let diagnoses = interfaces
        .iter()
        .map(|interface| Ok((interface.clone(), katran.diagnose(interface)?)));
    diagnoses.collect()
}

pub(crate) fn read(config: &Path) -> Result<Document> {
    Ok(Document::from_toml_file(config)?)
}

/// An error of a state that was made of a document, with file and line where it is about what that says.
pub(crate) fn placed(document: &Document, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<katran::Error>() {
        Ok(error) => document.placed(error).into(),
        Err(error) => error,
    }
}

/// What applying a document changed, or would change.
pub(crate) fn described(changes: &Changes, done: &str) -> String {
    if changes.is_empty() {
        return format!("{done}: no changes");
    }
    let mut lines = vec![format!("{done}:")];
    let of_vip = |what: &str, reals: &[(katran::Vip, std::net::IpAddr)]| {
        let of = reals
            .iter()
            .map(|(vip, real)| format!("  {vip}: real {real} {what}"));
        of.collect::<Vec<_>>()
    };
    let of_vips = |what: &str, vips: &[katran::Vip]| {
        let of = vips.iter().map(|vip| format!("  {vip} {what}"));
        of.collect::<Vec<_>>()
    };
    lines.extend(of_vips("added", &changes.vips_added));
    let other = "has other flags or another hash function";
    lines.extend(of_vips(other, &changes.vips_changed));
    lines.extend(of_vip("added", &changes.reals_added));
    lines.extend(of_vip("has another weight", &changes.reals_changed));
    lines.extend(of_vip("removed", &changes.reals_removed));
    lines.extend(of_vips("removed", &changes.vips_removed));
    let flags = changes.real_flags_changed.iter();
    lines.extend(flags.map(|real| format!("  real {real} has other flags")));
    // The rest in numbers, as there may be many.
    lines.push(format!("  in all: {changes}"));
    lines.join("\n")
}
