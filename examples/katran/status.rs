//! `katran status`: traffic, health, drains, attachments and problems; or who owns a pinned
//! balancer.

use std::fmt::Write;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;

use crate::client::To;
use crate::common;
use crate::common::say;
use crate::report::Health;
use crate::report::OfVip;
use crate::report::Rate;
use crate::report::Report;
use crate::report::counted;
use crate::report::rated;
use crate::report::scaled;

/// Which balancer, and what to show.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object, with rates
    #[arg(long)]
    json: bool,
    /// Seconds to measure rates over: 0.1 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    over: Duration,
    /// Only show who owns the balancer pinned here, without asking it; exit with status 0 if the
    /// owner works
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    pin: Option<PathBuf>,
    #[command(flatten)]
    to: To,
}

fn seconds(text: &str) -> Result<Duration, String> {
    common::seconds(text, 0.1..=60.0)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(directory) = &arguments.pin {
        let found = Diagnosis::of_pinned(directory);
        say(found.to_string());
        let works = found.worst() < Severity::Warning;
        anyhow::ensure!(works, "no living process owns it");
        return Ok(());
    }
    let before = arguments.to.report(false)?;
    thread::sleep(arguments.over);
    let now = rated(arguments.to.report(true)?, &before);
    say(match arguments.json {
        true => serde_json::to_string(&now)?,
        false => text(&now).trim_end().to_owned(),
    });
    Ok(())
}

/// The report as text.
fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = head(&mut text, report);
    let _ = traffic(&mut text, report);
    let _ = problems(&mut text, report);
    text
}

fn head(text: &mut String, report: &Report) -> std::fmt::Result {
    let (process, version) = (report.process, &report.version);
    writeln!(
        text,
        "katran {version}, process {process}, for {:.0} s",
        report.running
    )?;
    if report.is_old() {
        writeln!(
            text,
            "busy with a change: these figures are {:.1} s old",
            report.age
        )?;
    }
    if let Some(directory) = &report.pinned {
        writeln!(text, "pinned in {directory}")?;
    }
    for of in &report.attachments {
        let mode = of
            .mode
            .as_ref()
            .map_or(String::new(), |mode| format!(" in {mode} mode"));
        writeln!(text, "{} {}{mode}", of.state, of.place)?;
    }
    if report.attachments.is_empty() {
        writeln!(text, "attached to nothing")?;
    }
    if let Some(applied) = &report.last_apply {
        writeln!(text, "applied in {:.3} s: {}", applied.took, applied.result)?;
    }
    if let Some(refused) = &report.refused {
        writeln!(
            text,
            "since then a document was REFUSED: {}",
            refused.result
        )?;
    }
    Ok(())
}

fn traffic(text: &mut String, report: &Report) -> std::fmt::Result {
    let line = |name: &str, rate: Option<Rate>, more: &str| {
        let rate = rate.unwrap_or_default();
        let (packets, bits) = (scaled(rate.packets), scaled(rate.bits));
        format!("{name:<42} {packets:>9} {bits:>9} {more}")
            .trim_end()
            .to_owned()
    };
    writeln!(text, "\n{:<42} {:>9} {:>9}", "", "packets/s", "bits/s")?;
    for vip in &report.vips {
        let slots = vip.slots.filter(|slots| slots.unsettled > 0);
        let slots = slots.map_or(String::new(), |slots| {
            format!("{} unsettled", counted(slots.unsettled, "slot"))
        });
        writeln!(text, "{}", line(&vip.vip, vip.rate, &slots))?;
        for of in &vip.reals {
            let name = format!("  {}", of.real);
            writeln!(text, "{name:<42} {}", state(of))?;
        }
        if vip.reals.is_empty() {
            writeln!(text, "  no reals: all its packets are dropped")?;
        }
        if vip.panics {
            writeln!(text, "  TOO FEW REALS ANSWER: no more are taken out")?;
        }
        if vip.falls_back {
            writeln!(text, "  ALL OTHERS ARE DOWN: packets go to drained reals")?;
        }
    }
    writeln!(text, "\nbackends, over all VIPs")?;
    for real in &report.reals {
        writeln!(text, "{}", line(&format!("  {}", real.real), real.rate, ""))?;
    }
    if !report.drops.is_empty() {
        writeln!(text, "\nframes dropped so far")?;
        for (reason, frames) in &report.drops {
            writeln!(text, "  {reason:<40} {frames:>9}")?;
        }
    }
    Ok(())
}

/// The state of a real of a VIP, as text.
fn state(of: &OfVip) -> String {
    let mut words = vec![format!("weight {}", of.weight)];
    words.extend(match of.health {
        Health::NotProbed => None,
        Health::Unknown => Some(match &of.check {
            None => "not probed yet".to_owned(),
            Some(check) => format!("unknown: {}", check.result),
        }),
        Health::Up => Some("up".to_owned()),
        Health::Down => Some(match &of.check {
            None => "does not answer".to_owned(),
            // The last probe may have passed, without being the last one needed.
            Some(check) if check.result == "answers" => {
                "answers again, but not often enough yet".to_owned()
            }
            Some(check) => format!("does not answer: {}", check.result),
        }),
    });
    if of.down {
        words.push("DOWN".to_owned());
    }
    if let Some(drain) = &of.drain {
        let silent = drain
            .silent
            .map(|silent| format!(", silent for {silent:.0} s"));
        words.push(format!("drained{}", silent.unwrap_or_default()));
        if drain.done {
            words.push("can be switched off".to_owned());
        }
    }
    words.join("; ")
}

fn problems(text: &mut String, report: &Report) -> std::fmt::Result {
    let Some(problems) = &report.problems else {
        return writeln!(text, "\ntoo busy for a diagnosis: ask again");
    };
    if problems.is_empty() {
        return writeln!(text, "\nno problems");
    }
    writeln!(text)?;
    for problem in problems {
        let (severity, subject) = (&problem.severity, &problem.subject);
        let (place, message) = (&problem.interface, &problem.message);
        // Findings about the balancer as a whole, or about an interface.
        let about = format!("{place} {subject}");
        writeln!(text, "{severity:<8} {}: {message}", about.trim_start())?;
        if !problem.advice.is_empty() {
            writeln!(text, "{:<8} -> {}", "", problem.advice)?;
        }
    }
    Ok(())
}
