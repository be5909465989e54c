//! A root program lets several XDP programs share an interface: attaches it, lists its entries, and
//! removes it.

use std::path::PathBuf;

use anyhow::Result;
use katran::RootProgram;
use katran::XdpMode;
use katran::attachments::Attachment;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntries;

use super::say;

/// What to do with the root program.
#[derive(clap::Subcommand)]
pub(crate) enum Arguments {
    /// Load, attach and pin a root program
    Attach {
        /// The interface to share; repeatable
        #[arg(long, value_name = "NAME", required = true)]
        interface: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// The number of programs that can share it, 1 to 16
        #[arg(long, value_name = "N", default_value_t = 3)]
        entries: u32,
        /// XDP mode: auto, native (in the driver) or generic (in the network stack)
        #[arg(long, default_value_t = XdpMode::Auto)]
        mode: XdpMode,
        /// Accept frames in several buffers; every program in an entry must accept them too
        #[arg(long)]
        frags: bool,
    },
    /// List the entries
    Show(Place),
    /// Remove the root program and everything in its entries
    Remove(Place),
}

#[derive(clap::Args)]
pub(crate) struct Place {
    /// The path of its pinned program array, on a BPF file system
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/katran_root")]
    path: PathBuf,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match arguments {
        Arguments::Attach {
            interface,
            place,
            entries,
            mode,
            frags,
        } => {
            let is_there = place.path.exists();
            let mut root = match is_there {
                true => RootProgram::adopt(&place.path)?,
                false => {
                    let builder = RootProgram::builder().entries(entries);
                    builder.frags(frags).load()?
                }
            };
            let count = root.entries().count();
            anyhow::ensure!(
                count == entries,
                "{} has {count} entries: pass that number as --entries, or remove it first",
                place.path.display()
            );
            let attached = attach(&mut root, &interface, mode)?;
            if !is_there {
                // From here on it stays.
                root.pin(&place.path)?;
            }
            for attachment in attached {
                say(format!(
                    "root program with {entries} entries on {} in {} mode",
                    attachment.interface, attachment.mode
                ));
            }
            say(format!("pinned at {}", place.path.display()));
        }
        Arguments::Show(place) => {
            let entries = SharedEntries::open(&place.path)?;
            for (position, program) in entries.programs()?.into_iter().enumerate() {
                match program {
                    Some(program) => say(format!("{position}: {} ({})", program.name, program.id)),
                    None => say(format!("{position}: empty")),
                }
            }
        }
        Arguments::Remove(place) => {
            RootProgram::remove(&place.path)?;
            say(format!("removed {}", place.path.display()));
        }
    }
    Ok(())
}

/// Attaches it to those of these interfaces where it is missing.
fn attach(
    root: &mut RootProgram,
    interfaces: &[String],
    mode: XdpMode,
) -> katran::Result<Vec<Attachment>> {
    root.reattach()?;
    let there = root.interfaces();
    let attach = |interface: &String| {
        let is_it =
            |of: &&Attachment| of.interface == *interface && of.state == AttachmentState::Attached;
        match there.iter().find(is_it) {
            Some(held) => Ok(held.clone()),
            None => root.attach(interface, mode),
        }
    };
    interfaces.iter().map(attach).collect()
}
