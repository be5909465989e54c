//! The options of `run` that say what to balance and where; reads the file and attaches.

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

/// How long to wait for an owner that was asked to let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to balance, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The configuration document (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Balance packets on this interface; repeatable. With --shared: diagnose this interface, which
    /// has the root program
    #[arg(long, value_name = "NAME", required_unless_present = "shared")]
    pub(crate) interface: Vec<String>,
    /// Share interfaces: attach to an entry of the root program pinned here
    #[arg(long, value_name = "PATH")]
    shared: Option<PathBuf>,
    /// With --shared: the number of the entry, from 0
    #[arg(long, value_name = "N", default_value_t = 2, requires = "shared")]
    position: u32,
    /// XDP mode: auto, native (in the driver) or generic (in the network stack)
    #[arg(long, default_value_t = XdpMode::Auto)]
    mode: XdpMode,
    #[command(flatten)]
    pub(crate) keep: keeper::Keep,
    #[command(flatten)]
    pin: Pin,
    /// With --pin: take the balancer over from the running program, which then ends
    #[arg(long, requires = "pin")]
    pub(crate) take_over: bool,
}

impl Options {
    /// Reads the document.
    pub(crate) fn document(&self) -> Result<Document> {
        read(&self.config)
    }

    /// Loads a balancer with a state's settings, or adopts the pinned one.
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

    /// Attaches it to the interfaces or the root entry.
    pub(crate) fn attach(&self, katran: &mut Katran) -> Result<()> {
        // The previous process may have attached it, and interfaces may be gone.
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

    /// The interfaces that it is attached to itself.
    fn own_interfaces(&self) -> &[String] {
        match self.shared {
            None => &self.interface,
            Some(_) => &[],
        }
    }

    /// Detaches and reports it, which dropping would do silently. A pinned balancer stays.
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

/// Diagnoses each of these interfaces.
pub(crate) fn diagnose(katran: &Katran, interfaces: &[String]) -> Result<Vec<(String, Diagnosis)>> {
    anyhow::ensure!(
        !interfaces.is_empty(),
        "with --shared, a diagnosis also needs --interface: the interfaces that the root program is on"
    );
    let diagnoses = interfaces
        .iter()
        .map(|interface| Ok((interface.clone(), katran.diagnose(interface)?)));
    diagnoses.collect()
}

pub(crate) fn read(config: &Path) -> Result<Document> {
    Ok(Document::from_toml_file(config)?)
}

/// Adds file and line to an error about something in the document.
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
    // Only numbers for the rest, as there may be many.
    lines.push(format!("  in total: {changes}"));
    lines.join("\n")
}
