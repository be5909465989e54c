//! What the examples that balance have in common: their options, the configuration file and what
//! became of it, signals, and how they report. Each is a balancer in its own process: attached while
//! it runs (with `--pin` also afterwards), and following its file at SIGHUP.

#![allow(dead_code, reason = "each example uses a part")]

mod keeper;
mod pin;

use std::io::Write;
use std::io::stdout;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use katran::Katran;
use katran::State;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntry;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::state::Changes;
pub(crate) use keeper::Keeper;
#[allow(unused_imports, reason = "for examples without another clock")]
pub(crate) use keeper::ROUND;
use pin::Pin;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

/// For how long an owner is waited for that is asked to let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to balance, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The configuration: TOML with [balancer] and [[vip]]
    #[arg(long, value_name = "FILE", required_unless_present_any = ["remove", "owner"])]
    config: Option<PathBuf>,
    /// Where packets come in and leave; may be given several times. With --shared it is attached to none:
    /// they are those of the root program, to look at for a diagnosis
    #[arg(long, value_name = "NAME", required_unless_present_any = ["shared", "remove", "owner"])]
    pub(crate) interface: Vec<String>,
    /// Share the interface: be an entry of the root program that is pinned here
    #[arg(long, value_name = "PATH")]
    pub(crate) shared: Option<PathBuf>,
    /// The entry, from 0
    #[arg(long, value_name = "N", default_value_t = 2, requires = "shared")]
    pub(crate) position: u32,
    /// auto, native (in the driver) or generic (in the network stack)
    #[arg(long, default_value_t = XdpMode::Auto)]
    pub(crate) mode: XdpMode,
    #[command(flatten)]
    pin: Pin,
    /// With --pin: have the program let go that owns the balancer, which then ends, and go on with it
    #[arg(long, requires = "pin")]
    take_over: bool,
    /// Print whose the balancer is that is pinned with --pin, and end: with status 0 if it has an owner that works
    #[arg(long, requires = "pin", conflicts_with = "remove")]
    pub(crate) owner: bool,
}

impl Options {
    /// A balancer with the settings and VIPs of the file, attached to the interfaces.
    pub(crate) fn start(&self) -> Result<Katran> {
        self.start_from(&self.state()?)
    }

    /// Whether another program is to let go of the balancer.
    pub(crate) fn takes_over(&self) -> bool {
        self.take_over
    }

    /// What the file says.
    pub(crate) fn state(&self) -> Result<State> {
        Ok(State::from_toml_file(self.config())?)
    }

    fn config(&self) -> &Path {
        // The parser has refused to go on without one.
        self.config.as_deref().unwrap_or(Path::new(""))
    }

    /// Does what needs no balancer of this program, if that is what was asked for: takes a pinned one away, or tells whose it
    /// is.
    pub(crate) fn without_balancing(&self) -> Option<Result<()>> {
        let looked = self.owner.then(|| self.look_for_owner());
        looked.or_else(|| self.pin.removal())
    }

    /// Prints whose the pinned balancer is.
    pub(crate) fn look_for_owner(&self) -> Result<()> {
        let directory = self.pin.directory().unwrap_or(Path::new(""));
        let found = Diagnosis::of_pinned(directory);
        say(found.to_string());
        anyhow::ensure!(
            found.worst() < Severity::Warning,
            "no process looks after it"
        );
        Ok(())
    }

    /// A balancer with the settings and VIPs of a state, attached to the interfaces.
    pub(crate) fn start_from(&self, state: &State) -> Result<Katran> {
        let mut katran = self.load(state)?;
        self.attach(&mut katran)?;
        Ok(katran)
    }

    /// The same with the VIPs of a state that follows from what a pinned balancer was left with.
    pub(crate) fn start_by(
        &self,
        settings: &State,
        state: impl FnOnce(&Katran) -> State,
    ) -> Result<Katran> {
        let mut katran = self.load_or_go_on(settings)?;
        let state = state(&katran);
        report(&katran.apply(&state)?);
        self.attach(&mut katran)?;
        Ok(katran)
    }

    /// A balancer with the settings and VIPs of a state, attached to nothing.
    pub(crate) fn load(&self, state: &State) -> Result<Katran> {
        let mut katran = self.load_or_go_on(state)?;
        report(&katran.apply(state)?);
        Ok(katran)
    }

    /// A balancer with the settings of a state, or that which is pinned.
    fn load_or_go_on(&self, state: &State) -> Result<Katran> {
        Ok(match self.pin.directory() {
            None => state.builder()?.load()?,
            Some(directory) => {
                let mut builder = state.builder()?.pin(directory);
                if self.take_over {
                    builder = builder.take_over(PATIENCE);
                }
                let (katran, start) = builder.adopt_or_load()?;
                self.pin.report("balancer", &start);
                katran
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

    /// Where it balances, for a heading; not where it is gone from.
    pub(crate) fn place(&self, katran: &Katran) -> String {
        let there = |state: AttachmentState| state == AttachmentState::Attached;
        let attached = katran.interfaces().into_iter();
        let attached = attached.filter(|attachment| there(attachment.state));
        let attached =
            attached.map(|attachment| format!("{} ({})", attachment.interface, attachment.mode));
        let entries = katran.shared_entries().into_iter();
        let entries = entries.filter(|entry| there(entry.state));
        let entries =
            entries.map(|entry| format!("entry {} of {}", entry.position, entry.path.display()));
        attached.chain(entries).collect::<Vec<_>>().join(", ")
    }

    /// What keeps a balancer from forwarding on each of its interfaces.
    pub(crate) fn diagnose(&self, katran: &Katran) -> Result<Vec<(&str, Diagnosis)>> {
        anyhow::ensure!(
            !self.interface.is_empty(),
            "a diagnosis with --shared takes --interface, too: those that the root program is on"
        );
        let interfaces = self.interface.iter();
        let diagnoses =
            interfaces.map(|interface| Ok((interface.as_str(), katran.diagnose(interface)?)));
        diagnoses.collect()
    }

    /// Prints it, or why there is none.
    pub(crate) fn report_diagnosis(&self, katran: &Katran) {
        match self.diagnose(katran) {
            Ok(diagnoses) => {
                for (interface, diagnosis) in diagnoses {
                    say(format!("{interface}:\n{diagnosis}"));
                }
            }
            Err(error) => eprintln!("{}", with_causes(&error)),
        }
    }

    /// Applies the file again; if that fails, nothing has changed.
    pub(crate) fn reload(&self, katran: &mut Katran) -> Result<Changes> {
        Ok(katran.apply(&self.state()?)?)
    }

    /// Applies the file again, and prints what changed or why nothing did.
    pub(crate) fn follow(&self, katran: &mut Katran) {
        self.follow_with(katran, |_| {});
    }

    /// The same with a change of what the file says.
    pub(crate) fn follow_with(&self, katran: &mut Katran, change: impl FnOnce(&mut State)) {
        let read = self.state().map(|mut state| {
            change(&mut state);
            state
        });
        self.take_in(katran, read);
    }

    /// Applies what the file says, which was read before: whoever shares the balancer reads first, and then locks it.
    pub(crate) fn take_in(&self, katran: &mut Katran, read: Result<State>) {
        let applied = read.and_then(|state| Ok(katran.apply(&state)?));
        match applied {
            Ok(changes) => report(&changes),
            Err(error) => eprintln!(
                "{}\nnothing was changed: the old configuration stays in force",
                with_causes(&error)
            ),
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

/// A program's end: an error goes to standard error, under the program's name. That another one has taken the
/// balancer over is none.
pub(crate) fn exit(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_handed_over(&error) => {
            say(error.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{program}: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_handed_over(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<katran::Error>();
    error.is_some_and(|error| matches!(error, katran::Error::HandedOver { .. }))
}

/// What applying the file changed.
fn report(changes: &Changes) {
    if changes.is_empty() {
        return say("applied: no changes".to_owned());
    }
    say("applied:".to_owned());
    let of_vip = |what: &str, reals: &[(katran::Vip, std::net::IpAddr)]| {
        for (vip, real) in reals {
            say(format!("  {vip}: real {real} {what}"));
        }
    };
    for vip in &changes.vips_added {
        say(format!("  {vip} added"));
    }
    for vip in &changes.vips_changed {
        say(format!("  {vip} has other flags or another hash function"));
    }
    of_vip("added", &changes.reals_added);
    of_vip("has another weight", &changes.reals_changed);
    of_vip("removed", &changes.reals_removed);
    for vip in &changes.vips_removed {
        say(format!("  {vip} removed"));
    }
    for real in &changes.real_flags_changed {
        say(format!("  real {real} has other flags"));
    }
    // The rest in numbers, as there may be many.
    say(format!("  in all: {changes}"));
}

/// Prints a line. Nobody reading them any more is no reason to stop balancing, or to panic.
pub(crate) fn say(line: String) {
    let _ = writeln!(stdout(), "{line}");
}

/// SIGHUP, SIGINT, SIGTERM, and SIGUSR1, which asks a balancer for a diagnosis of itself; as messages.
pub(crate) fn signals() -> Result<Receiver<i32>> {
    let (sender, receiver) = mpsc::channel();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// An error and what caused it; some of the library's name the cause themselves.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            known if known.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
}
